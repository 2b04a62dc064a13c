//! Which Kubernetes pod a container belongs to, read from the files of the kubelet and the container
//! runtimes. The API server is not contacted.
//!
//! * `/var/log/pods/NAMESPACE_NAME_UID`: written by the kubelet for every runtime;
//! * `config.json` of the container: containerd and CRI-O write the pod into its annotations;
//! * `/var/log/containers/POD_NAMESPACE_CONTAINER-ID.log`: links that the kubelet makes for log agents.
//!
//! Uids and container ids are never reused, so a result stays valid. Names are accepted only in the form
//! that Kubernetes allows.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

use rsttrace_model::owner::Pod;
use serde::Deserialize;

use super::cgroup::is_pod_uid;

/// Limit of cached pods: more than a node has containers.
const MAX_CACHED: usize = 2048;
/// Limit of names that are read in one directory.
const MOST_NAMES: usize = 16_384;
/// Limit of bytes that are read of a `config.json`; such files have about 20 KiB.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// Directories of the runtimes' `CONTAINER/config.json`, each with the path between CONTAINER and the file.
const BUNDLES: [(&str, &str); 5] = [
    ("run/containerd/io.containerd.runtime.v2.task/k8s.io", ""),
    ("run/k3s/containerd/io.containerd.runtime.v2.task/k8s.io", ""),
    ("var/snap/microk8s/common/run/containerd/io.containerd.runtime.v2.task/k8s.io", ""),
    ("run/containers/storage/overlay-containers", "userdata"),
    ("var/lib/containers/storage/overlay-containers", "userdata"),
];

/// Annotations for uid, namespace and name: containerd's, then CRI-O's.
const ANNOTATIONS: [[&str; 3]; 2] = [
    [
        "io.kubernetes.cri.sandbox-uid",
        "io.kubernetes.cri.sandbox-namespace",
        "io.kubernetes.cri.sandbox-name",
    ],
    ["io.kubernetes.pod.uid", "io.kubernetes.pod.namespace", "io.kubernetes.pod.name"],
];

/// The pods of this node that were requested so far.
#[derive(Debug)]
pub(super) struct Pods {
    /// Root directories with the node's files: pid 1's root first, in case ours is another.
    roots: Vec<PathBuf>,
    /// By container id or uid.
    cached: HashMap<String, Pod>,
    order: VecDeque<String>,
}

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    annotations: HashMap<String, String>,
}

impl Pods {
    pub(super) fn new(roots: Vec<PathBuf>) -> Self {
        Self { roots, cached: HashMap::new(), order: VecDeque::new() }
    }

    /// The pod with this uid and this container. `None` when both are `None`. The pod has no names when the
    /// node's files do not contain them.
    pub(super) fn find(&mut self, uid: Option<&str>, container: Option<&str>) -> Option<Pod> {
        let key = container.or(uid)?;
        if let Some(pod) = self.cached.get(key) {
            return Some(pod.clone());
        }
        let named = self.look_up(uid, container);
        if let Some(pod) = &named {
            self.cache(key, pod.clone());
        }
        named.or_else(|| Some(Pod { uid: Some(uid?.to_owned()), ..Pod::default() }))
    }

    fn cache(&mut self, key: &str, pod: Pod) {
        if self.order.len() >= MAX_CACHED
            && let Some(oldest) = self.order.pop_front()
        {
            self.cached.remove(&oldest);
        }
        self.order.push_back(key.to_owned());
        self.cached.insert(key.to_owned(), pod);
    }

    fn look_up(&self, uid: Option<&str>, container: Option<&str>) -> Option<Pod> {
        let has_uid = |pod: &Pod| uid.is_none() || pod.uid.is_none() || pod.uid.as_deref() == uid;
        self.roots.iter().find_map(|root| {
            let found = uid
                .and_then(|uid| in_pod_logs(root, uid))
                .or_else(|| in_bundle(root, container?).filter(has_uid))
                .or_else(|| in_container_logs(root, container?))?;
            Some(Pod { uid: found.uid.or_else(|| uid.map(str::to_owned)), ..found })
        })
    }
}

fn names(directory: PathBuf) -> HashSet<String> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .take(MOST_NAMES)
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// Searches for `NAMESPACE_NAME_UID`. None of the three can contain an underscore.
fn in_pod_logs(root: &Path, uid: &str) -> Option<Pod> {
    names(root.join("var/log/pods")).iter().find_map(|name| {
        let (rest, found) = name.rsplit_once('_')?;
        let (namespace, name) = rest.split_once('_')?;
        (found == uid).then(|| pod(Some(uid), namespace, name)).flatten()
    })
}

/// Searches for `POD_NAMESPACE_CONTAINER-ID.log`.
fn in_container_logs(root: &Path, container: &str) -> Option<Pod> {
    let suffix = format!("-{container}.log");
    names(root.join("var/log/containers")).iter().find_map(|name| {
        let (name, rest) = name.strip_suffix(&suffix)?.split_once('_')?;
        let (namespace, _) = rest.split_once('_')?;
        pod(None, namespace, name)
    })
}

fn in_bundle(root: &Path, container: &str) -> Option<Pod> {
    let config = BUNDLES.iter().find_map(|(directory, inner)| {
        let path = root.join(directory).join(container).join(inner).join("config.json");
        let mut text = String::new();
        File::open(path).ok()?.take(MAX_CONFIG_BYTES).read_to_string(&mut text).ok()?;
        serde_json::from_str::<Config>(&text).ok()
    })?;
    ANNOTATIONS.iter().find_map(|keys| {
        let [uid, namespace, name] = keys.map(|key| config.annotations.get(key));
        pod(uid.map(String::as_str), namespace?, name?)
    })
}

/// A pod, if the names are valid for the API server (RFC 1123 labels and subdomains).
fn pod(uid: Option<&str>, namespace: &str, name: &str) -> Option<Pod> {
    let allowed = |text: &str, longest: usize, dots: bool| {
        !text.is_empty()
            && text.len() <= longest
            && text.bytes().all(|byte| {
                matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-') || (dots && byte == b'.')
            })
    };
    let uid = uid.filter(|uid| is_pod_uid(uid)).map(str::to_owned);
    (allowed(namespace, 63, false) && allowed(name, 253, true)).then(|| Pod {
        uid,
        name: Some(name.to_owned()),
        namespace: Some(namespace.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempRoot;

    const ID: &str = "3f9c3f9c3f9c3f9c3f9c3f9c3f9c3f9c3f9c3f9c3f9c3f9c3f9c3f9c3f9c3f9c";
    const UID: &str = "81e09ae0-12ec-4ec5-94b8-51cda7906370";

    fn pods(root: &TempRoot) -> Pods {
        Pods::new(vec![root.path().to_owned()])
    }

    fn names_of(pod: Option<Pod>) -> Option<(String, String)> {
        pod.and_then(|pod| Some((pod.namespace?, pod.name?)))
    }

    fn orders() -> Option<(String, String)> {
        Some(("shop".into(), "orders-api-7c9".into()))
    }

    #[test]
    fn the_kubelets_log_directory_names_a_pod_by_its_uid() {
        let root = TempRoot::new();
        root.file(&format!("var/log/pods/shop_orders-api-7c9_{UID}/app/0.log"), "");
        root.file("var/log/pods/shop_other_81e09ae0-12ec-4ec5-94b8-51cda7906371/x", "");
        let found = pods(&root).find(Some(UID), Some(ID));
        assert_eq!(found.as_ref().and_then(|pod| pod.uid.as_deref()), Some(UID));
        assert_eq!(names_of(found), orders());
    }

    #[test]
    fn annotations_of_every_runtime_name_a_pod() {
        for (directory, inner) in BUNDLES {
            for [uid, namespace, name] in ANNOTATIONS {
                let root = TempRoot::new();
                let config = format!(
                    r#"{{"ociVersion":"1.1.0","process":{{"args":["x"]}},"annotations":{{"{uid}":"{UID}","{namespace}":"shop","{name}":"orders-api-7c9"}}}}"#
                );
                root.file(&format!("{directory}/{ID}/{inner}/config.json"), &config);
                let found = pods(&root).find(None, Some(ID));
                assert_eq!(found.as_ref().and_then(|pod| pod.uid.as_deref()), Some(UID));
                assert_eq!(names_of(found), orders(), "{directory}");
            }
        }
    }

    #[test]
    fn the_link_for_log_agents_names_a_pod_by_its_container() {
        let root = TempRoot::new();
        root.file(&format!("var/log/containers/orders-api-7c9_shop_my-app-{ID}.log"), "");
        let found = pods(&root).find(Some(UID), Some(ID));
        assert_eq!(found.as_ref().and_then(|pod| pod.uid.as_deref()), Some(UID));
        assert_eq!(names_of(found), orders());
    }

    #[test]
    fn annotations_that_name_another_pod_are_ignored() {
        let root = TempRoot::new();
        let config = r#"{"annotations":{"io.kubernetes.pod.uid":"81e09ae0-12ec-4ec5-94b8-51cda7906371","io.kubernetes.pod.namespace":"shop","io.kubernetes.pod.name":"orders-api-7c9"}}"#;
        root.file(&format!("{}/{ID}/config.json", BUNDLES[0].0), config);
        let found = pods(&root).find(Some(UID), Some(ID)).expect("the uid is known");
        assert_eq!((found.name, found.namespace), (None, None));
    }

    #[test]
    fn names_that_kubernetes_would_reject_are_ignored() {
        for (namespace, name) in [
            ("shop", "a\u{1b}[2Jb"),
            ("shop", "../../etc"),
            ("shop", "Upper"),
            ("", "orders"),
            ("shop", ""),
            ("sh.op", "orders"),
        ] {
            assert_eq!(pod(Some(UID), namespace, name), None, "{namespace} {name}");
        }
        assert_eq!(pod(Some(UID), &"n".repeat(64), "orders"), None);
        assert_eq!(pod(Some("not a uid"), "shop", "orders").and_then(|pod| pod.uid), None);
    }

    #[test]
    fn without_kubernetes_there_is_no_pod_and_malformed_files_are_ignored() {
        let root = TempRoot::new();
        assert_eq!(pods(&root).find(None, None), None);
        assert_eq!(pods(&root).find(None, Some(ID)), None);
        root.file(&format!("{}/{ID}/config.json", BUNDLES[0].0), "{\"annotations\":7");
        root.file("var/log/pods/nonsense", "");
        root.file(&format!("var/log/containers/{ID}.log"), "");
        assert_eq!(pods(&root).find(None, Some(ID)), None);
    }

    #[test]
    fn pods_are_cached_and_the_cache_is_bounded() {
        let root = TempRoot::new();
        let file = format!("var/log/pods/shop_orders-api-7c9_{UID}/x");
        root.file(&file, "");
        let mut pods = pods(&root);
        pods.find(Some(UID), None);
        fs::remove_dir_all(root.path().join("var")).expect("ours");
        assert_eq!(names_of(pods.find(Some(UID), None)), orders(), "the pod has just been deleted");
        (0..2 * MAX_CACHED).for_each(|n| pods.cache(&format!("{n:032x}"), Pod::default()));
        assert_eq!((pods.cached.len(), pods.order.len()), (MAX_CACHED, MAX_CACHED));
    }
}
