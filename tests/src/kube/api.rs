//! As much of the Kubernetes API as kube-proxy's informers use: LIST and WATCH in JSON over plain HTTP/1.1.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// The collections that kube-proxy reads: its path, the kind and the version of its objects.
const COLLECTIONS: [(&str, &str, &str); 4] = [
    ("/api/v1/nodes", "Node", "v1"),
    ("/api/v1/services", "Service", "v1"),
    ("/apis/discovery.k8s.io/v1/endpointslices", "EndpointSlice", "discovery.k8s.io/v1"),
    ("/apis/networking.k8s.io/v1/servicecidrs", "ServiceCIDR", "networking.k8s.io/v1"),
];

/// One version of one object.
#[derive(Clone, Debug)]
struct Change {
    version: u64,
    kind: &'static str,
    /// `ADDED`, `MODIFIED` or `DELETED`.
    event: &'static str,
    object: Value,
}

#[derive(Default)]
struct Store {
    version: u64,
    objects: BTreeMap<(&'static str, String), Value>,
    log: Vec<Change>,
}

#[derive(Default)]
struct Shared {
    store: Mutex<Store>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The API server; its threads end with the program.
pub struct Api {
    shared: Arc<Shared>,
    pub address: SocketAddr,
}

impl Api {
    /// Listens on a free port of 127.0.0.1 of the calling thread's namespace.
    pub fn start() -> Result<Self> {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen for kube-proxy")?;
        let address = listener.local_addr().context("the API server's address")?;
        let shared = Arc::new(Shared::default());
        let served = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&served);
                // kube-proxy closes connections when it ends: an error here is expected.
                thread::spawn(move || serve(&shared, &stream).ok());
            }
        });
        Ok(Self { shared, address })
    }

    /// Creates or replaces an object, which names its `kind` and `metadata.name`, and informs the watchers.
    pub fn put(&self, mut object: Value) -> Result<()> {
        let kind = kind_of(&object)?;
        let name = object["metadata"]["name"].as_str().context("an object has no name")?.to_owned();
        let mut store = self.shared.lock();
        store.version += 1;
        object["metadata"]["resourceVersion"] = json!(store.version.to_string());
        let old = store.objects.insert((kind, name), object.clone());
        let event = if old.is_some() { "MODIFIED" } else { "ADDED" };
        let version = store.version;
        store.log.push(Change { version, kind, event, object });
        self.shared.changed.notify_all();
        Ok(())
    }

    /// Deletes an object, if it is there, and informs the watchers.
    pub fn delete(&self, kind: &str, name: &str) {
        let mut store = self.shared.lock();
        let key = store.objects.keys().find(|(of, named)| *of == kind && named == name).cloned();
        let Some(key) = key else { return };
        let Some(mut object) = store.objects.remove(&key) else { return };
        store.version += 1;
        object["metadata"]["resourceVersion"] = json!(store.version.to_string());
        let version = store.version;
        store.log.push(Change { version, kind: key.0, event: "DELETED", object });
        self.shared.changed.notify_all();
    }
}

fn kind_of(object: &Value) -> Result<&'static str> {
    let kind = object["kind"].as_str().unwrap_or_default();
    let known = COLLECTIONS.iter().find(|(_, known, _)| *known == kind);
    known.map(|(_, known, _)| *known).with_context(|| format!("the tests do not serve {kind:?}"))
}

struct Request {
    method: String,
    path: String,
    query: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Request {
    /// `None` at the end of the connection.
    fn read(from: &mut impl BufRead) -> Result<Option<Self>> {
        let mut line = String::new();
        if from.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let mut words = line.split_whitespace().map(str::to_owned);
        let method = words.next().context("an empty request")?;
        let target = words.next().context("a request without a path")?;
        let mut length = 0;
        loop {
            let mut header = String::new();
            from.read_line(&mut header)?;
            let Some((name, value)) = header.trim_end().split_once(':') else { break };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().context("Content-Length")?;
            }
        }
        let mut body = vec![0; length];
        from.read_exact(&mut body)?;
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        let query = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Ok(Some(Self { method, path: path.to_owned(), query, body }))
    }

    fn is(&self, option: &str) -> bool {
        self.query.get(option).is_some_and(|value| value == "true" || value == "1")
    }
}

fn serve(shared: &Shared, stream: &TcpStream) -> Result<()> {
    let mut reader = BufReader::new(stream);
    while let Some(request) = Request::read(&mut reader)? {
        if request.method != "GET" {
            // Events are accepted and forgotten.
            respond(stream, "201 Created", &request.body)?;
            continue;
        }
        let found = COLLECTIONS.iter().find_map(|collection| {
            let rest = request.path.strip_prefix(collection.0)?;
            Some((*collection, rest.trim_start_matches('/')))
        });
        match found {
            Some(((_, kind, version), "")) if request.is("watch") => {
                return watch(shared, stream, &request, kind, version);
            }
            Some(((_, kind, version), "")) => {
                let store = shared.lock();
                let of_kind = store.objects.iter().filter(|((of, _), _)| *of == kind);
                let list = json!({
                    "kind": format!("{kind}List"), "apiVersion": version,
                    "metadata": {"resourceVersion": store.version.to_string()},
                    "items": of_kind.map(|(_, object)| object).collect::<Vec<_>>(),
                });
                drop(store);
                respond(stream, "200 OK", list.to_string().as_bytes())?;
            }
            Some(((_, kind, _), name)) => {
                let object = shared.lock().objects.get(&(kind, name.to_owned())).cloned();
                match object {
                    Some(object) => respond(stream, "200 OK", object.to_string().as_bytes())?,
                    None => not_found(stream)?,
                }
            }
            None => not_found(stream)?,
        }
    }
    Ok(())
}

fn not_found(stream: &TcpStream) -> Result<()> {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404,
    });
    respond(stream, "404 Not Found", status.to_string().as_bytes())
}

fn respond(mut stream: &TcpStream, status: &str, body: &[u8]) -> Result<()> {
    let mut answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    answer.extend_from_slice(body);
    stream.write_all(&answer).context("answer kube-proxy")
}

/// Sends what changed after the version that the client knows, then every change, until the client goes.
fn watch(
    shared: &Shared,
    mut stream: &TcpStream,
    request: &Request,
    kind: &'static str,
    api_version: &str,
) -> Result<()> {
    stream.write_all(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
    )?;
    let known = request.query.get("resourceVersion").and_then(|it| it.parse::<u64>().ok());
    let streams_list = request.is("sendInitialEvents");
    let mut sent = known.unwrap_or(0);
    if streams_list || sent == 0 {
        let store = shared.lock();
        sent = store.version;
        let of_kind = store.objects.iter().filter(|((of, _), _)| *of == kind);
        let present: Vec<_> = of_kind.map(|(_, object)| object.clone()).collect();
        drop(store);
        for object in present {
            chunk(stream, "ADDED", &object)?;
        }
        if streams_list {
            let end = json!({
                "kind": kind, "apiVersion": api_version,
                "metadata": {
                    "resourceVersion": sent.to_string(),
                    "annotations": {"k8s.io/initial-events-end": "true"},
                },
            });
            chunk(stream, "BOOKMARK", &end)?;
        }
    }
    loop {
        let mut store = shared.lock();
        while store.version <= sent {
            store = shared.changed.wait(store).unwrap_or_else(PoisonError::into_inner);
        }
        let is_new = |change: &&Change| change.kind == kind && change.version > sent;
        let changes: Vec<_> = store.log.iter().filter(is_new).cloned().collect();
        sent = store.version;
        drop(store);
        for change in changes {
            chunk(stream, change.event, &change.object)?;
        }
    }
}

fn chunk(mut stream: &TcpStream, event: &str, object: &Value) -> Result<()> {
    let line = format!("{}\n", json!({"type": event, "object": object}));
    let chunk = format!("{:x}\r\n{line}\r\n", line.len());
    stream.write_all(chunk.as_bytes()).context("inform a watcher")
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn ask(api: &Api, request: &str) -> BufReader<TcpStream> {
        let mut stream = TcpStream::connect(api.address).expect("connect");
        write!(stream, "GET {request} HTTP/1.1\r\nHost: x\r\n\r\n").expect("ask");
        BufReader::new(stream)
    }

    fn service(port: u16) -> Value {
        json!({"kind": "Service", "metadata": {"name": "db"}, "spec": {"port": port}})
    }

    /// The next event of a watch: its type and its object.
    fn event(from: &mut impl BufRead) -> (String, Value) {
        let line = from.lines().map_while(Result::ok).find(|line| line.starts_with('{'));
        let event: Value = serde_json::from_str(&line.expect("an event")).expect("JSON");
        (event["type"].as_str().unwrap_or_default().to_owned(), event["object"].clone())
    }

    #[test]
    fn a_list_has_the_objects_and_a_watch_from_its_version_only_what_came_later() {
        let api = Api::start().expect("start");
        api.put(service(1)).expect("put");
        let mut reader = ask(&api, "/api/v1/services?limit=500");
        let body = reader.by_ref().lines().map_while(Result::ok).find(|line| line.is_empty());
        assert_eq!(body.as_deref(), Some(""));
        let mut list = serde_json::Deserializer::from_reader(reader).into_iter::<Value>();
        let list = list.next().expect("a body").expect("JSON");
        assert_eq!(list["items"][0]["spec"]["port"], 1);

        let version = list["metadata"]["resourceVersion"].as_str().expect("a version").to_owned();
        let path = format!("/api/v1/services?watch=true&resourceVersion={version}");
        let mut watch = ask(&api, &path);
        api.put(service(2)).expect("put");
        let (kind, object) = event(&mut watch);
        assert_eq!((kind.as_str(), &object["spec"]["port"]), ("MODIFIED", &json!(2)));
        api.delete("Service", "db");
        assert_eq!(event(&mut watch).0, "DELETED");
    }

    #[test]
    fn a_streamed_list_ends_with_its_bookmark() {
        let api = Api::start().expect("start");
        api.put(service(1)).expect("put");
        let mut watch = ask(&api, "/api/v1/services?watch=1&sendInitialEvents=true");
        assert_eq!(event(&mut watch).0, "ADDED");
        let (kind, object) = event(&mut watch);
        assert_eq!(kind, "BOOKMARK");
        assert_eq!(object["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    }

    #[test]
    fn an_object_of_a_kind_that_is_not_served_is_an_error() {
        let api = Api::start().expect("start");
        assert!(api.put(json!({"kind": "Pod", "metadata": {"name": "a"}})).is_err());
    }
}
