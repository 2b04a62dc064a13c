//! Finds circular dependencies between the modules of a crate.
//!
//! Every path in the code counts, inside and outside of `use`, also over several lines. A name that a
//! module re-exports belongs to the module that defines it. Tests are ignored.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use syn::visit::{self, Visit};

/// A module's path below the crate; the path of the crate's root is empty.
type Module = Vec<String>;

/// The paths that a file uses, and the names that it re-exports.
#[derive(Default)]
struct File {
    /// Absolute paths below the crate's root.
    paths: Vec<Module>,
    /// Names that it re-exports, and where they come from.
    exports: BTreeMap<String, Module>,
}

/// Every circle in the crate whose sources are in `src`, as the list of its modules.
///
/// Modules in `registry` may use the modules that use them: a list of all values needs each module.
pub fn find(src: &Path, registry: &[&str]) -> Result<Vec<String>> {
    let mut files = BTreeMap::new();
    read(src, &Vec::new(), &mut files)?;
    let mut edges: BTreeMap<&Module, BTreeSet<&Module>> = BTreeMap::new();
    for (module, file) in &files {
        for path in &file.paths {
            let target = home(&files, path);
            if target != module && !registry.contains(&module.join("::").as_str()) {
                edges.entry(module).or_default().insert(target);
            }
        }
    }
    Ok(circles(&edges))
}

/// The module that defines the item of a path.
fn home<'a>(files: &'a BTreeMap<Module, File>, path: &Module) -> &'a Module {
    let mut path = path.clone();
    // A chain of re-exports has at most as many links as there are files.
    for _ in 0..files.len() {
        let depth = (0..=path.len()).rev().find(|&depth| files.contains_key(&path[..depth]));
        let depth = depth.unwrap_or_default();
        let Some((module, file)) = files.get_key_value(&path[..depth]) else {
            break;
        };
        match path.get(depth).and_then(|name| file.exports.get(name)) {
            Some(origin) => path.clone_from(origin),
            None => return module,
        }
    }
    files.first_key_value().map(|(root, _)| root).expect("a crate has a root")
}

/// Sets of modules that depend on each other.
fn circles(edges: &BTreeMap<&Module, BTreeSet<&Module>>) -> Vec<String> {
    let reach = |from: &Module| {
        let mut seen = BTreeSet::new();
        let mut next: Vec<&Module> = edges.get(from).into_iter().flatten().copied().collect();
        while let Some(module) = next.pop() {
            if seen.insert(module) {
                next.extend(edges.get(module).into_iter().flatten());
            }
        }
        seen
    };
    let reached: BTreeMap<_, _> = edges.keys().map(|module| (*module, reach(module))).collect();
    let mut found = BTreeSet::new();
    for (module, from_here) in &reached {
        let circle: Vec<_> = from_here
            .iter()
            .filter(|other| reached.get(*other).is_some_and(|back| back.contains(module)))
            .map(|other| if other.is_empty() { "the root".into() } else { other.join("::") })
            .collect();
        if !circle.is_empty() {
            found.insert(circle.join(" <-> "));
        }
    }
    found.into_iter().collect()
}

/// Reads the files below a folder.
fn read(folder: &Path, below: &Module, files: &mut BTreeMap<Module, File>) -> Result<()> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut entries: Vec<PathBuf> =
        entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    entries.sort();
    for path in entries {
        let name = path.file_stem().and_then(|it| it.to_str()).unwrap_or_default().to_owned();
        let mut module = below.clone();
        if path.is_dir() {
            module.push(name);
            read(&path, &module, files)?;
        } else if path.extension().is_some_and(|it| it == "rs") {
            if name == "tests" {
                continue;
            }
            if !["mod", "lib", "main"].contains(&name.as_str()) {
                module.push(name);
            }
            let text = fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            let file = parse(&text, &module)
                .with_context(|| format!("cannot parse {}", path.display()))?;
            files.insert(module, file);
        }
    }
    Ok(())
}

fn parse(text: &str, module: &Module) -> Result<File> {
    let syntax = syn::parse_file(text)?;
    let children = syntax.items.iter().filter_map(|item| match item {
        syn::Item::Mod(child) if child.content.is_none() => Some(child.ident.to_string()),
        _ => None,
    });
    let mut reader = Reader { module, children: children.collect(), file: File::default() };
    reader.visit_file(&syntax);
    Ok(reader.file)
}

struct Reader<'a> {
    module: &'a Module,
    /// Modules below this one, which can be used without `self`.
    children: BTreeSet<String>,
    file: File,
}

impl Reader<'_> {
    /// The absolute path, if the path is inside this crate.
    fn absolute(&self, path: &[String]) -> Option<Module> {
        let mut base = match path.first()?.as_str() {
            "crate" => Vec::new(),
            "self" | "super" => self.module.clone(),
            child if self.children.contains(child) => self.module.clone(),
            _ => return None,
        };
        let rest = path.iter().skip_while(|part| {
            if *part == "super" {
                base.pop();
            }
            ["crate", "self", "super"].contains(&part.as_str())
        });
        let rest: Vec<String> = rest.cloned().collect();
        base.extend(rest);
        Some(base)
    }

    fn take_use(&mut self, before: &[String], tree: &syn::UseTree, exports: bool) {
        let with = |name: &syn::Ident| [before, &[name.to_string()]].concat();
        match tree {
            syn::UseTree::Path(path) => self.take_use(&with(&path.ident), &path.tree, exports),
            syn::UseTree::Group(group) => {
                group.items.iter().for_each(|tree| self.take_use(before, tree, exports));
            }
            syn::UseTree::Name(name) => self.take_name(with(&name.ident), &name.ident, exports),
            syn::UseTree::Rename(name) => self.take_name(with(&name.ident), &name.rename, exports),
            syn::UseTree::Glob(_) => self.file.paths.extend(self.absolute(before)),
        }
    }

    fn take_name(&mut self, path: Vec<String>, name: &syn::Ident, exports: bool) {
        let absolute = self.absolute(&path);
        if let Some(origin) = absolute.as_ref().filter(|_| exports) {
            self.file.exports.insert(name.to_string(), origin.clone());
        }
        self.file.paths.extend(absolute);
    }
}

fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|it| {
        it.path().is_ident("cfg")
            && matches!(&it.meta, syn::Meta::List(list) if list.tokens.to_string().contains("test"))
    })
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !is_test(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        let exports = !matches!(item.vis, syn::Visibility::Inherited);
        self.take_use(&[], &item.tree, exports);
    }

    // `pub(super)` is not a use of `super`.
    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let parts: Vec<String> = path.segments.iter().map(|it| it.ident.to_string()).collect();
        self.file.paths.extend(self.absolute(&parts));
        visit::visit_path(self, path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(sources: &[(&str, &str)]) -> Vec<String> {
        let mut files = BTreeMap::new();
        for (name, text) in sources {
            let module: Module =
                name.split("::").filter(|it| !it.is_empty()).map(Into::into).collect();
            files.insert(module.clone(), parse(text, &module).expect("Rust"));
        }
        let mut edges: BTreeMap<&Module, BTreeSet<&Module>> = BTreeMap::new();
        for (module, file) in &files {
            for path in &file.paths {
                let target = home(&files, path);
                if target != module {
                    edges.entry(module).or_default().insert(target);
                }
            }
        }
        circles(&edges)
    }

    #[test]
    fn two_modules_that_use_each_other_are_a_circle_also_with_multi_line_imports() {
        let a = ("a", "use crate::{\n    b::{\n        B,\n    },\n};\npub struct A;");
        assert_eq!(files(&[("", ""), a, ("b", "pub struct B(crate::a::A);")]), ["a <-> b"]);
        assert_eq!(files(&[("", ""), a, ("b", "pub struct B;")]), [""; 0]);
    }

    #[test]
    fn a_re_exported_name_belongs_to_the_module_that_defines_it() {
        let parent = ("p", "mod x; mod y; pub use x::X; pub use y::Y;");
        let y = ("p::y", "use super::X; pub struct Y(X);");
        assert_eq!(files(&[("", ""), parent, ("p::x", "pub struct X;"), y]), [""; 0]);
        let circle = ("p::x", "pub struct X(super::Y);");
        assert_eq!(files(&[("", ""), parent, circle, y]), ["p::x <-> p::y"]);
    }

    #[test]
    fn paths_in_tests_make_no_circle() {
        let a = ("a", "#[cfg(test)] mod tests { use crate::b::B; } pub struct A;");
        assert_eq!(files(&[("", ""), a, ("b", "pub struct B(crate::a::A);")]), [""; 0]);
    }
}
