//! Resolves the facts of the eBPF object on this kernel. [`resolve`] is pure: all its input is passed in.

use std::collections::HashMap;

use tracer_common::wire::ABSENT;

use super::{
    btf::{Btf, Kind, Member, ParamType, TypeId},
    facts::{Absence, Facts, Source, Value},
    ipvs_layout,
    manifest::{Fact, Manifest, MemberPath},
    symbols::KernelSymbols,
};

/// Enums whose variant names are shown in reports. Their numbers differ between kernels.
const REASONS: [&str; 2] = ["sk_rst_reason", "skb_drop_reason"];
/// BTF describes raw tracepoints by typedefs with this prefix, whose first parameter is internal.
const TRACEPOINT: &str = "btf_trace_";

/// One BTF, with the ids of those wanted names that it defines.
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
/// else, with `builtin` (see [`ipvs_layout::apply`]), in the built-in table. Addresses come from
/// `symbols`, which may be `None` because loading them takes a while.
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
    wanted.extend(ipvs_layout::INNER_TYPES);

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
            // The greatest u32 means "absent".
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

/// The kind of BTF type that describes a function, and how many of its first parameters no probe receives.
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

/// A member from the built-in table. The rest of its path is resolved with vmlinux BTF.
fn builtin_member(path: &MemberPath, vmlinux: &Scope<'_>) -> Result<Member, Absence> {
    let members: Vec<&str> = path.members.iter().map(String::as_str).collect();
    let (first, rest) = members.split_first().ok_or(Absence::NoPart)?;
    let entry = ipvs_layout::find(&path.owner, first).ok_or(Absence::NoType)?;
    if rest.is_empty() {
        return Ok(Member { byte_offset: entry.offset, size: entry.size, bitfield: false });
    }
    let (kind, name) = entry.inner.ok_or(Absence::NoPart)?;
    let inner = readable(vmlinux.btf.member(vmlinux.id(kind, name)?, rest))?;
    Ok(Member { byte_offset: entry.offset + inner.byte_offset, ..inner })
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

    fn from_vmlinux(fact: Fact, vmlinux: &Btf) -> (u64, Source) {
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
        assert_eq!(from_vmlinux(offset("sock", &["state"]), &btf), (4, Source::Vmlinux));
        let size = Fact::Size(path("sock", &["state"]));
        assert_eq!(from_vmlinux(size, &btf), (4, Source::Vmlinux));
    }

    #[test]
    fn an_absent_fact_has_the_absent_value_and_a_reason() {
        let btf = vmlinux().build();
        assert_eq!(from_vmlinux(offset("sock", &["x"]), &btf), absent(Absence::NoPart));
        assert_eq!(from_vmlinux(offset("x", &["x"]), &btf), absent(Absence::NoType));
        assert_eq!(from_vmlinux(offset("sock", &["repair"]), &btf), absent(Absence::Bitfield));
        assert_eq!(from_vmlinux(argument("x", "sock"), &btf), absent(Absence::NoType));
        assert_eq!(from_vmlinux(argument("send", "sk_buff"), &btf), absent(Absence::NoPart));
    }

    #[test]
    fn a_value_that_equals_the_absent_value_or_does_not_fit_is_absent() {
        let btf = vmlinux().build();
        for (enumeration, name) in [("sk_rst_reason", "MINUS"), ("wide", "MAX"), ("wide", "MORE")] {
            let value = from_vmlinux(variant(enumeration, name), &btf);
            assert_eq!(value, absent(Absence::TooLarge), "{name}");
        }
    }

    #[test]
    fn a_bitfield_is_reported_as_such_although_modules_and_table_lack_the_member() {
        let base = vmlinux().build();
        let module = Btf::parse_split(Builder::onto(&base).bytes(), &base).expect("valid");
        let modules = [("ip_vs".to_owned(), module)];
        let value = one(offset("sock", &["repair"]), &base, &modules, true, None);
        assert_eq!(value.source, Source::Absent(Absence::Bitfield));
    }

    #[test]
    fn arguments_of_a_tracepoint_are_counted_without_the_internal_one() {
        let btf = vmlinux().build();
        let vmlinux = |n| (n, Source::Vmlinux);
        assert_eq!(from_vmlinux(argument("send", "sock"), &btf), vmlinux(1));
        assert_eq!(from_vmlinux(argument("btf_trace_send", "sock"), &btf), vmlinux(0));
        assert_eq!(from_vmlinux(argument("btf_trace_send", "sk_rst_reason"), &btf), vmlinux(1));
    }

    #[test]
    fn functions_and_variants_resolve() {
        let btf = vmlinux().build();
        assert_eq!(from_vmlinux(exists("send"), &btf), (1, Source::Vmlinux));
        assert_eq!(from_vmlinux(exists("sock"), &btf), (0, Source::Absent(Absence::NoType)));
        assert_eq!(from_vmlinux(variant("sk_rst_reason", "NO_SOCKET"), &btf), (7, Source::Vmlinux));
    }

    #[test]
    fn vmlinux_comes_before_modules_and_the_table_last() {
        let base = vmlinux().build();
        let mut b = Builder::onto(&base);
        b.structure("sock", 8, &[("state", 1, 0), ("extra", 1, 32)]);
        b.structure("ip_vs_conn", 8, &[("caddr", 1, 32)]);
        let module = Btf::parse_split(b.bytes(), &base).expect("valid");
        let modules = [("ip_vs".to_owned(), module)];
        let resolved = |fact| {
            let value = one(fact, &base, &modules, true, None);
            (value.number, value.source)
        };
        let module = Source::Module("ip_vs".to_owned());
        assert_eq!(resolved(offset("sock", &["state"])), (4, Source::Vmlinux));
        assert_eq!(resolved(offset("sock", &["extra"])), (4, module.clone()));
        assert_eq!(resolved(offset("ip_vs_conn", &["caddr"])), (4, module));
        assert_eq!(resolved(offset("netns_ipvs", &["net"])), (2160, Source::BuiltIn));
    }

    #[test]
    fn a_path_of_the_table_continues_in_types_of_vmlinux() {
        let btf = vmlinux().build();
        let timer = || offset("ip_vs_conn", &["timer", "expires"]);
        let value = one(timer(), &btf, &[], true, None);
        assert_eq!((value.number, value.source), (104, Source::BuiltIn));
        let size = Fact::Size(path("ip_vs_conn", &["timer", "expires"]));
        assert_eq!(one(size, &btf, &[], true, None).number, 8);
        assert_eq!(from_vmlinux(timer(), &btf), absent(Absence::NoType));
        let plain = one(offset("ip_vs_conn", &["cport", "x"]), &btf, &[], true, None);
        assert_eq!(plain.source, Source::Absent(Absence::NoPart));
    }

    #[test]
    fn addresses_come_from_kallsyms_as_eight_bytes() {
        let btf = vmlinux().build();
        let symbols = |text: &str| KernelSymbols::read(text.as_bytes()).expect("readable");
        let readable = symbols("ffffffff81000010 t tcp_done\n");
        let hidden = symbols("0000000000000000 t tcp_done\n");
        let of = |name, symbols| one(address(name), &btf, &[], false, symbols);

        let value = of("tcp_done", Some(&readable));
        assert_eq!(value.source, Source::Kallsyms);
        assert_eq!(value.to_bytes(), 0xffff_ffff_8100_0010_u64.to_ne_bytes());

        let no_symbol = of("tcp_reset", Some(&readable));
        assert_eq!(no_symbol.source, Source::Absent(Absence::NoSymbol));
        assert_eq!(no_symbol.to_bytes(), [0; 8]);
        for symbols in [Some(&hidden), None] {
            let value = of("tcp_done", symbols);
            assert_eq!(value.source, Source::Absent(Absence::NoAddresses));
        }
    }

    #[test]
    fn reason_names_are_those_of_the_kernel() {
        let facts = resolve(&Manifest::default(), &vmlinux().build(), &[], false, None);
        let names = facts.reason_names("sk_rst_reason").expect("the enum");
        assert_eq!(names.get(&7).map(String::as_str), Some("NO_SOCKET"));
        assert_eq!(names.len(), 2);
        assert!(facts.reason_names("skb_drop_reason").is_none());
    }
}
