//! Values for the eBPF object's facts on this kernel. [`resolve`] is pure: everything it knows of
//! the kernel is passed in.

use std::{
    collections::{BTreeMap, HashMap},
    fmt, fs, io,
    path::{Path, PathBuf},
};

use tracer_common::wire::ABSENT;

use super::{
    btf::{Btf, BtfError, Kind, Member, ParamType, TypeId},
    facts,
    manifest::{Fact, Manifest, MemberPath},
    symbols::KernelSymbols,
};

/// Enums whose names reports show. The numbers differ between kernels.
const REASONS: [&str; 2] = ["sk_rst_reason", "skb_drop_reason"];
/// Raw tracepoints are described by typedefs of this prefix, whose first parameter is internal.
const TRACEPOINT: &str = "btf_trace_";

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Vmlinux,
    Module(String),
    /// The table in [`facts`].
    BuiltIn,
    Kallsyms,
    /// The value is the one that stands for absence.
    Absent(Absence),
}

/// Why a fact has no value on this kernel, most telling last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Absence {
    /// No BTF has the struct, enum or function.
    NoType,
    /// kallsyms has no such symbol, or several.
    NoSymbol,
    /// kallsyms was not read, or shows no addresses.
    NoAddresses,
    /// The type is there, the member, parameter or variant is not.
    NoPart,
    /// The value does not fit its variable.
    TooLarge,
    /// A member that is a bitfield cannot be read by its byte offset.
    Bitfield,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vmlinux => f.write_str("vmlinux BTF"),
            Self::Module(name) => write!(f, "{name} BTF"),
            Self::BuiltIn => f.write_str("built-in table"),
            Self::Kallsyms => f.write_str("kallsyms"),
            Self::Absent(absence) => write!(f, "absent: {absence}"),
        }
    }
}

impl fmt::Display for Absence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoType => "this kernel's BTF does not have the type or function",
            Self::NoSymbol => "no symbol of this name, or several",
            Self::NoAddresses => "symbol addresses were not read, or the kernel withholds them",
            Self::NoPart => "the type or function lacks this part",
            Self::TooLarge => "the value does not fit",
            Self::Bitfield => "the member is a bitfield",
        })
    }
}

/// One fact's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    pub number: u64,
    pub source: Source,
    size: u8,
}

impl Value {
    /// As the variable holds it: 4 or 8 bytes in this machine's order.
    pub fn to_bytes(&self) -> Vec<u8> {
        if self.size == 8 {
            self.number.to_ne_bytes().to_vec()
        } else {
            (self.number as u32).to_ne_bytes().to_vec()
        }
    }
}

/// All facts of a manifest on one kernel, and the names of its reasons.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    values: BTreeMap<String, Value>,
    reasons: BTreeMap<&'static str, BTreeMap<u32, String>>,
}

impl Facts {
    /// A fact's value. `None` if this kernel does not have it, or the manifest does not name it.
    pub fn get(&self, symbol: &str) -> Option<u64> {
        let value = self.values.get(symbol)?;
        (!matches!(value.source, Source::Absent(_))).then_some(value.number)
    }

    /// All values by symbol, absent ones included.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.values.iter().map(|(symbol, value)| (&**symbol, value))
    }

    /// Names of `sk_rst_reason` or `skb_drop_reason` by number, as the kernel's source writes
    /// them. `None` if this kernel has no such enum.
    pub fn reason_names(&self, enumeration: &str) -> Option<&BTreeMap<u32, String>> {
        self.reasons.get(enumeration)
    }
}

/// One BTF with the ids of the wanted names that it defines.
struct Scope<'a> {
    source: Source,
    btf: &'a Btf,
    ids: HashMap<(Kind, &'a str), TypeId>,
}

impl<'a> Scope<'a> {
    fn new(source: Source, btf: &'a Btf, wanted: &[(Kind, &'a str)]) -> Self {
        let ids = btf.find_all(wanted);
        Self { source, btf, ids }
    }

    fn id(&self, kind: Kind, name: &str) -> Result<TypeId, Absence> {
        self.ids.get(&(kind, name)).copied().ok_or(Absence::NoType)
    }

    fn member(&self, path: &MemberPath) -> Result<Member, Absence> {
        let id = self.id(Kind::Struct, &path.owner)?;
        let members: Vec<&str> = path.members.iter().map(String::as_str).collect();
        readable(self.btf.member(id, &members))
    }

    fn argument(&self, function: &str, type_name: &str) -> Result<u64, Absence> {
        let (kind, internal) = function_kind(function);
        let id = self.id(kind, function)?;
        let params = self.btf.prototype(id).ok_or(Absence::NoPart)?;
        params
            .iter()
            .skip(internal)
            .position(|param| {
                [ParamType::PointerTo(type_name), ParamType::Enum(type_name)].contains(&param.ty)
            })
            .map(|index| index as u64)
            .ok_or(Absence::NoPart)
    }

    fn enum_value(&self, enumeration: &str, variant: &str) -> Result<u64, Absence> {
        let id = self.id(Kind::Enum, enumeration)?;
        let values = self.btf.enum_values(id);
        let (_, value) = values.iter().find(|(name, _)| *name == variant).ok_or(Absence::NoPart)?;
        u64::try_from(*value).map_err(|_| Absence::TooLarge)
    }

    fn find(&self, fact: &Fact) -> Result<u64, Absence> {
        match fact {
            Fact::Offset(path) => Ok(u64::from(self.member(path)?.byte_offset)),
            Fact::Size(path) => Ok(u64::from(self.member(path)?.size)),
            Fact::Argument { function, type_name } => self.argument(function, type_name),
            Fact::EnumValue { enumeration, variant } => self.enum_value(enumeration, variant),
            Fact::Exists { function } => self.id(Kind::Func, function).map(|_| 1),
            Fact::Address { .. } => Err(Absence::NoSymbol),
        }
    }
}

/// Finds a value for every fact of the manifest: in vmlinux, else in the first module that has it,
/// else, with `builtin` ([`facts::apply`] tells), in the built-in table. Addresses come from
/// `symbols`, which reading takes a while and may be left out.
pub fn resolve(
    manifest: &Manifest,
    vmlinux: &Btf,
    modules: &[(String, Btf)],
    builtin: bool,
    symbols: Option<&KernelSymbols>,
) -> Facts {
    let mut wanted: Vec<_> =
        manifest.facts.iter().filter_map(|fact| wanted_type(&fact.parsed)).collect();
    wanted.extend(REASONS.map(|name| (Kind::Enum, name)));
    wanted.extend(facts::INNER_TYPES);

    // vmlinux first: modules of newer kernels repeat its types.
    let vmlinux = Scope::new(Source::Vmlinux, vmlinux, &wanted);
    let modules: Vec<_> = modules
        .iter()
        .map(|(name, btf)| Scope::new(Source::Module(name.clone()), btf, &wanted))
        .collect();

    let value = |fact: &Fact| -> Result<(u64, Source), Absence> {
        if let Fact::Address { symbol } = fact {
            let symbols = symbols.filter(|symbols| !symbols.restricted());
            let symbols = symbols.ok_or(Absence::NoAddresses)?;
            let address = symbols.address(symbol).ok_or(Absence::NoSymbol)?;
            return Ok((address, Source::Kallsyms));
        }
        let mut absence = Absence::NoType;
        for scope in std::iter::once(&vmlinux).chain(&modules) {
            match scope.find(fact) {
                Ok(number) => return Ok((number, scope.source.clone())),
                Err(here) => absence = absence.max(here),
            }
        }
        match fact {
            Fact::Offset(path) if builtin => builtin_member(path, &vmlinux)
                .map(|member| (u64::from(member.byte_offset), Source::BuiltIn)),
            Fact::Size(path) if builtin => builtin_member(path, &vmlinux)
                .map(|member| (u64::from(member.size), Source::BuiltIn)),
            _ => Err(absence),
        }
        .map_err(|here| absence.max(here))
    };

    let values = manifest.facts.iter().map(|fact| {
        let found = value(&fact.parsed).and_then(|(number, source)| {
            // The greatest u32 stands for absence.
            if fact.size == 4 && number >= u64::from(ABSENT) {
                return Err(Absence::TooLarge);
            }
            Ok((number, source))
        });
        let (number, source) = found.unwrap_or_else(|absence| {
            let number = match fact.parsed {
                Fact::Exists { .. } | Fact::Address { .. } => 0,
                _ => u64::from(ABSENT),
            };
            (number, Source::Absent(absence))
        });
        let value = Value { number, source, size: fact.size };
        (fact.symbol.clone(), value)
    });

    let reasons = REASONS.into_iter().filter_map(|enumeration| {
        let id = vmlinux.id(Kind::Enum, enumeration).ok()?;
        let names = vmlinux.btf.enum_values(id).into_iter();
        let names =
            names.filter_map(|(name, value)| Some((u32::try_from(value).ok()?, name.to_owned())));
        Some((enumeration, names.collect()))
    });

    Facts { values: values.collect(), reasons: reasons.collect() }
}

/// The type that a fact is looked up in.
fn wanted_type(fact: &Fact) -> Option<(Kind, &str)> {
    Some(match fact {
        Fact::Offset(path) | Fact::Size(path) => (Kind::Struct, &path.owner),
        Fact::Argument { function, .. } => (function_kind(function).0, function),
        Fact::EnumValue { enumeration, .. } => (Kind::Enum, enumeration),
        Fact::Exists { function } => (Kind::Func, function),
        Fact::Address { .. } => return None,
    })
}

/// How BTF describes a function, and how many of its first parameters no probe sees.
fn function_kind(function: &str) -> (Kind, usize) {
    if function.starts_with(TRACEPOINT) { (Kind::Typedef, 1) } else { (Kind::Func, 0) }
}

fn readable(member: Option<Member>) -> Result<Member, Absence> {
    match member {
        Some(member) if member.bitfield => Err(Absence::Bitfield),
        Some(member) => Ok(member),
        None => Err(Absence::NoPart),
    }
}

/// A member by the built-in table, and on into its type by vmlinux BTF.
fn builtin_member(path: &MemberPath, vmlinux: &Scope<'_>) -> Result<Member, Absence> {
    let members: Vec<&str> = path.members.iter().map(String::as_str).collect();
    let (first, rest) = members.split_first().ok_or(Absence::NoPart)?;
    let entry = facts::find(&path.owner, first).ok_or(Absence::NoType)?;
    if rest.is_empty() {
        return Ok(Member { byte_offset: entry.offset, size: entry.size, bitfield: false });
    }
    let (kind, name) = entry.inner.ok_or(Absence::NoPart)?;
    let inner = readable(vmlinux.btf.member(vmlinux.id(kind, name)?, rest))?;
    Ok(Member { byte_offset: entry.offset + inner.byte_offset, ..inner })
}

/// Why the kernel's BTF is not usable.
#[derive(Debug)]
pub enum LoadError {
    /// The kernel was built without BTF (`CONFIG_DEBUG_INFO_BTF`).
    NoVmlinux {
        path: PathBuf,
    },
    Read {
        path: PathBuf,
        error: io::Error,
    },
    Parse {
        path: PathBuf,
        error: BtfError,
    },
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoVmlinux { path } => write!(
                f,
                "this kernel does not describe its types: {} is missing (built without \
                 CONFIG_DEBUG_INFO_BTF)",
                path.display()
            ),
            Self::Read { path, .. } => write!(f, "cannot read {}", path.display()),
            Self::Parse { path, .. } => write!(f, "cannot understand {}", path.display()),
        }
    }
}

impl std::error::Error for LoadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::NoVmlinux { .. } => None,
            Self::Read { error, .. } => Some(error),
            Self::Parse { error, .. } => Some(error),
        }
    }
}

/// Reads `<root>/sys/kernel/btf/vmlinux` and the BTF of those of `modules` that have one: a module
/// that is not loaded, or built in, has none. `root` is `/` but in tests.
///
/// # Errors
/// If vmlinux's is missing, or a file cannot be read or understood.
pub fn load_kernel_btf(
    root: &Path,
    modules: &[&str],
) -> Result<(Btf, Vec<(String, Btf)>), LoadError> {
    let folder = root.join("sys/kernel/btf");
    let path = folder.join("vmlinux");
    let Some(bytes) = read_if_present(&path)? else {
        return Err(LoadError::NoVmlinux { path });
    };
    let vmlinux = Btf::parse(bytes).map_err(|error| LoadError::Parse { path, error })?;

    let mut described = Vec::new();
    for name in modules {
        let path = folder.join(name);
        if let Some(bytes) = read_if_present(&path)? {
            let btf = Btf::parse_split(bytes, &vmlinux)
                .map_err(|error| LoadError::Parse { path, error })?;
            described.push(((*name).to_owned(), btf));
        }
    }
    Ok((vmlinux, described))
}

fn read_if_present(path: &Path) -> Result<Option<Vec<u8>>, LoadError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(LoadError::Read { path: path.to_owned(), error }),
    }
}

#[cfg(test)]
mod tests {
    use super::super::btf::build::Builder;
    use super::super::manifest::FactName;
    use super::*;

    fn path(owner: &str, members: &[&str]) -> MemberPath {
        MemberPath {
            owner: owner.to_owned(),
            members: members.iter().map(|m| (*m).to_owned()).collect(),
        }
    }

    fn offset(owner: &str, members: &[&str]) -> Fact {
        Fact::Offset(path(owner, members))
    }

    fn argument(function: &str, type_name: &str) -> Fact {
        Fact::Argument { function: function.to_owned(), type_name: type_name.to_owned() }
    }

    fn variant(enumeration: &str, variant: &str) -> Fact {
        Fact::EnumValue { enumeration: enumeration.to_owned(), variant: variant.to_owned() }
    }

    fn exists(function: &str) -> Fact {
        Fact::Exists { function: function.to_owned() }
    }

    fn address(symbol: &str) -> Fact {
        Fact::Address { symbol: symbol.to_owned() }
    }

    /// The value of one fact.
    fn one(
        fact: Fact,
        vmlinux: &Btf,
        modules: &[(String, Btf)],
        builtin: bool,
        symbols: Option<&KernelSymbols>,
    ) -> Value {
        let size = if matches!(fact, Fact::Address { .. }) { 8 } else { 4 };
        let manifest = Manifest {
            programs: Vec::new(),
            facts: vec![FactName { symbol: "X".to_owned(), size, parsed: fact }],
        };
        let facts = resolve(&manifest, vmlinux, modules, builtin, symbols);
        let value = facts.values["X"].clone();
        let present = !matches!(value.source, Source::Absent(_));
        assert_eq!(facts.get("X"), present.then_some(value.number));
        value
    }

    fn seen(fact: Fact, vmlinux: &Btf) -> (u64, Source) {
        let value = one(fact, vmlinux, &[], false, None);
        (value.number, value.source)
    }

    fn absent(absence: Absence) -> (u64, Source) {
        (u64::from(u32::MAX), Source::Absent(absence))
    }

    fn vmlinux() -> Builder {
        let mut b = Builder::new();
        let u32_ = b.int("u32", 4);
        let u64_ = b.int("u64", 8);
        let nibble = b.partial_int("u32", 4, 4);
        let sock = b.structure(
            "sock",
            12,
            &[("err", u32_, 0), ("state", u32_, 32), ("repair", nibble, 64)],
        );
        b.structure("timer_list", 16, &[("entry", u64_, 0), ("expires", u64_, 64)]);
        let reason = b.enumeration(
            "sk_rst_reason",
            true,
            &[("NONE", 0), ("NO_SOCKET", 7), ("MINUS", u32::MAX)],
        );
        b.enum64("wide", &[("MAX", u64::from(u32::MAX)), ("MORE", 1 << 32)]);
        let void = b.ptr(0);
        let sock = b.ptr(sock);
        let params = [("ctx", void), ("sk", sock), ("why", reason)];
        b.func("send", &params);
        let proto = b.proto(&params);
        let proto = b.ptr(proto);
        b.typedef("btf_trace_send", proto);
        b
    }

    #[test]
    fn members_give_offset_and_size() {
        let btf = vmlinux().build();
        assert_eq!(seen(offset("sock", &["state"]), &btf), (4, Source::Vmlinux));
        let size = Fact::Size(path("sock", &["state"]));
        assert_eq!(seen(size, &btf), (4, Source::Vmlinux));
    }

    #[test]
    fn absence_is_the_sentinel_with_its_reason() {
        let btf = vmlinux().build();
        assert_eq!(seen(offset("sock", &["x"]), &btf), absent(Absence::NoPart));
        assert_eq!(seen(offset("x", &["x"]), &btf), absent(Absence::NoType));
        assert_eq!(seen(offset("sock", &["repair"]), &btf), absent(Absence::Bitfield));
        assert_eq!(seen(argument("x", "sock"), &btf), absent(Absence::NoType));
        assert_eq!(seen(argument("send", "sk_buff"), &btf), absent(Absence::NoPart));
    }

    #[test]
    fn values_that_would_pass_for_absence_or_be_cut_are_absent() {
        let btf = vmlinux().build();
        for (enumeration, name) in [("sk_rst_reason", "MINUS"), ("wide", "MAX"), ("wide", "MORE")] {
            let value = seen(variant(enumeration, name), &btf);
            assert_eq!(value, absent(Absence::TooLarge), "{name}");
        }
    }

    #[test]
    fn a_bitfield_is_reported_as_such_wherever_else_it_was_looked_for() {
        let base = vmlinux().build();
        let module = Btf::parse_split(Builder::onto(&base).bytes(), &base).expect("valid");
        let modules = [("ip_vs".to_owned(), module)];
        let value = one(offset("sock", &["repair"]), &base, &modules, true, None);
        assert_eq!(value.source, Source::Absent(Absence::Bitfield));
    }

    #[test]
    fn tracepoint_arguments_do_not_count_the_internal_one() {
        let btf = vmlinux().build();
        let vmlinux = |n| (n, Source::Vmlinux);
        assert_eq!(seen(argument("send", "sock"), &btf), vmlinux(1));
        assert_eq!(seen(argument("btf_trace_send", "sock"), &btf), vmlinux(0));
        assert_eq!(seen(argument("btf_trace_send", "sk_rst_reason"), &btf), vmlinux(1));
    }

    #[test]
    fn functions_and_variants_resolve() {
        let btf = vmlinux().build();
        assert_eq!(seen(exists("send"), &btf), (1, Source::Vmlinux));
        assert_eq!(seen(exists("sock"), &btf), (0, Source::Absent(Absence::NoType)));
        assert_eq!(seen(variant("sk_rst_reason", "NO_SOCKET"), &btf), (7, Source::Vmlinux));
    }

    #[test]
    fn vmlinux_comes_before_modules_and_the_table_last() {
        let base = vmlinux().build();
        let mut b = Builder::onto(&base);
        b.structure("sock", 8, &[("state", 1, 0), ("extra", 1, 32)]);
        b.structure("ip_vs_conn", 8, &[("caddr", 1, 32)]);
        let module = Btf::parse_split(b.bytes(), &base).expect("valid");
        let modules = [("ip_vs".to_owned(), module)];
        let seen = |fact| {
            let value = one(fact, &base, &modules, true, None);
            (value.number, value.source)
        };
        let module = Source::Module("ip_vs".to_owned());
        assert_eq!(seen(offset("sock", &["state"])), (4, Source::Vmlinux));
        assert_eq!(seen(offset("sock", &["extra"])), (4, module.clone()));
        assert_eq!(seen(offset("ip_vs_conn", &["caddr"])), (4, module));
        assert_eq!(seen(offset("netns_ipvs", &["net"])), (2160, Source::BuiltIn));
    }

    #[test]
    fn the_table_goes_on_into_types_of_vmlinux() {
        let btf = vmlinux().build();
        let timer = || offset("ip_vs_conn", &["timer", "expires"]);
        let value = one(timer(), &btf, &[], true, None);
        assert_eq!((value.number, value.source), (104, Source::BuiltIn));
        let size = Fact::Size(path("ip_vs_conn", &["timer", "expires"]));
        assert_eq!(one(size, &btf, &[], true, None).number, 8);
        assert_eq!(seen(timer(), &btf), absent(Absence::NoType));
        let plain = one(offset("ip_vs_conn", &["cport", "x"]), &btf, &[], true, None);
        assert_eq!(plain.source, Source::Absent(Absence::NoPart));
    }

    #[test]
    fn addresses_come_from_kallsyms_as_eight_bytes() {
        let btf = vmlinux().build();
        let symbols = |text: &str| KernelSymbols::read(text.as_bytes()).expect("readable");
        let known = symbols("ffffffff81000010 t tcp_done\n");
        let withheld = symbols("0000000000000000 t tcp_done\n");
        let of = |name, symbols| one(address(name), &btf, &[], false, symbols);

        let value = of("tcp_done", Some(&known));
        assert_eq!(value.source, Source::Kallsyms);
        assert_eq!(value.to_bytes(), 0xffff_ffff_8100_0010_u64.to_ne_bytes());

        let no_symbol = of("tcp_reset", Some(&known));
        assert_eq!(no_symbol.source, Source::Absent(Absence::NoSymbol));
        assert_eq!(no_symbol.to_bytes(), [0; 8]);
        for symbols in [Some(&withheld), None] {
            let value = of("tcp_done", symbols);
            assert_eq!(value.source, Source::Absent(Absence::NoAddresses));
        }
    }

    #[test]
    fn reason_names_are_the_running_kernels() {
        let facts = resolve(&Manifest::default(), &vmlinux().build(), &[], false, None);
        let names = facts.reason_names("sk_rst_reason").expect("it is there");
        assert_eq!(names.get(&7).map(String::as_str), Some("NO_SOCKET"));
        assert_eq!(names.len(), 2);
        assert!(facts.reason_names("skb_drop_reason").is_none());
    }

    #[test]
    fn a_kernel_without_btf_is_told_from_one_that_cannot_be_read() {
        let root = std::env::temp_dir().join(format!("rsttrace-plan-{}", std::process::id()));
        let folder = root.join("sys/kernel/btf");
        fs::create_dir_all(&folder).expect("the temporary directory is writable");
        let load = || load_kernel_btf(&root, &["ip_vs", "nf_nat"]);

        let missing = load();
        fs::write(folder.join("vmlinux"), "garbage").expect("writable");
        let garbage = load();
        fs::write(folder.join("vmlinux"), vmlinux().bytes()).expect("writable");
        let module = Builder::onto(&vmlinux().build()).bytes();
        fs::write(folder.join("ip_vs"), module).expect("writable");
        let loaded = load();
        fs::remove_dir_all(&root).expect("writable");

        assert!(matches!(missing, Err(LoadError::NoVmlinux { .. })));
        assert!(matches!(garbage, Err(LoadError::Parse { .. })));
        let (_, modules) = loaded.expect("both files are valid");
        let names: Vec<_> = modules.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["ip_vs"]);
    }
}
