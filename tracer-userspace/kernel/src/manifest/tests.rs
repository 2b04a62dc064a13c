use super::*;

const FUNC: u8 = 2;
const OBJECT: u8 = 1;

/// A minimal 64-bit little-endian ELF: (symbol, type, size, section) in sections of no content.
fn elf(symbols: &[(&str, u8, u64, &str)]) -> Vec<u8> {
    let mut strings = vec![0];
    let mut string = |name: &str| {
        let offset = strings.len() as u32;
        strings.extend(name.as_bytes());
        strings.push(0);
        offset
    };
    let mut sections: Vec<&str> = symbols.iter().map(|symbol| symbol.3).collect();
    sections.dedup();
    let mut symtab = vec![0; 24];
    for (name, kind, size, section) in symbols {
        let index = 1 + sections.iter().position(|s| s == section).expect("listed");
        symtab.extend(string(name).to_le_bytes());
        symtab.extend([1 << 4 | kind, 0]);
        symtab.extend((index as u16).to_le_bytes());
        symtab.extend(0_u64.to_le_bytes());
        symtab.extend(size.to_le_bytes());
    }
    let names: Vec<u32> = sections.iter().map(|name| string(name)).collect();

    let section = |name: u32, kind: u32, offset: usize, size: usize, link: u32, entry: u64| {
        let mut header = Vec::new();
        header.extend(name.to_le_bytes());
        header.extend(kind.to_le_bytes());
        for word in [0, 0, offset as u64, size as u64] {
            header.extend(word.to_le_bytes());
        }
        header.extend(link.to_le_bytes());
        header.extend(1_u32.to_le_bytes());
        header.extend(1_u64.to_le_bytes());
        header.extend(entry.to_le_bytes());
        header
    };
    let count = sections.len() + 3;
    let symtab_at = 64;
    let strings_at = symtab_at + symtab.len();
    let headers_at = strings_at + strings.len();
    let strtab_index = (count - 1) as u32;

    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend(1_u16.to_le_bytes());
    file.extend(247_u16.to_le_bytes());
    file.extend(1_u32.to_le_bytes());
    for word in [0, 0, headers_at as u64] {
        file.extend(word.to_le_bytes());
    }
    file.extend(0_u32.to_le_bytes());
    for half in [64, 0, 0, 64, count as u16, strtab_index as u16] {
        file.extend(half.to_le_bytes());
    }
    file.extend(&symtab);
    file.extend(&strings);
    file.extend(vec![0; 64]);
    for name in names {
        file.extend(section(name, 1, 64, 0, 0, 0));
    }
    file.extend(section(0, 2, symtab_at, symtab.len(), strtab_index, 24));
    file.extend(section(0, 3, strings_at, strings.len(), 0, 0));
    file
}

fn fact(symbol: &str) -> Fact {
    let size = if symbol.starts_with("ADDRESS") { 8 } else { 4 };
    let manifest = Manifest::from_elf(&elf(&[(symbol, OBJECT, size, ".rodata")]))
        .expect("the name is well-formed");
    manifest.facts.into_iter().next().expect("one fact").parsed
}

fn refusal(symbol: &str, kind: u8, size: u64, section: &str) -> String {
    Manifest::from_elf(&elf(&[(symbol, kind, size, section)]))
        .expect_err("the symbol is malformed")
        .to_string()
}

#[test]
fn a_program_has_a_hook_a_way_and_a_target() {
    let manifest = Manifest::from_elf(&elf(&[
        ("memcpy", FUNC, 8, ".text"),
        ("__nf_conntrack_alloc__kretprobe", FUNC, 8, "kretprobe/__nf_conntrack_alloc"),
        ("nf_ct_delete__kprobe_part0", FUNC, 8, "kprobe/nf_ct_delete.part.0"),
        ("tcp_reset__rawtp", FUNC, 8, "raw_tp/tcp_receive_reset"),
    ]))
    .expect("well-formed");
    let seen: Vec<_> =
        manifest.programs.iter().map(|p| (p.hook.as_str(), p.way, p.target.as_str())).collect();
    assert_eq!(
        seen,
        [
            ("__nf_conntrack_alloc", AttachKind::Kretprobe, "__nf_conntrack_alloc"),
            ("nf_ct_delete", AttachKind::KprobePart0, "nf_ct_delete.part.0"),
            ("tcp_reset", AttachKind::RawTracepoint, "tcp_receive_reset"),
        ]
    );
}

#[test]
fn fact_names_split_at_dot_and_keep_their_underscores() {
    let path = |owner: &str, members: &[&str]| MemberPath {
        owner: owner.to_owned(),
        members: members.iter().map(|m| (*m).to_owned()).collect(),
    };
    assert_eq!(
        fact("OFFSET_OF_nf_conn_DOT_tuplehash_DOT_1_DOT_tuple"),
        Fact::Offset(path("nf_conn", &["tuplehash", "1", "tuple"]))
    );
    assert_eq!(fact("SIZE_OF_sk_buff_DOT__nfct"), Fact::Size(path("sk_buff", &["_nfct"])));
    assert_eq!(
        fact("ARG_OF_btf_trace_tcp_send_reset_DOT_sk_rst_reason"),
        Fact::Argument {
            function: "btf_trace_tcp_send_reset".to_owned(),
            type_name: "sk_rst_reason".to_owned()
        }
    );
    assert_eq!(
        fact("VALUE_OF_skb_drop_reason_DOT_SKB_DROP_REASON_NO_SOCKET"),
        Fact::EnumValue {
            enumeration: "skb_drop_reason".to_owned(),
            variant: "SKB_DROP_REASON_NO_SOCKET".to_owned()
        }
    );
    assert_eq!(fact("HAS_nf_ct_destroy"), Fact::Exists { function: "nf_ct_destroy".to_owned() });
    assert_eq!(
        fact("ADDRESS_OF_nf_ct_delete_DOT_part_DOT_0"),
        Fact::Address { symbol: "nf_ct_delete.part.0".to_owned() }
    );
}

#[test]
fn variables_outside_the_grammar_are_ignored() {
    let object = elf(&[("EVENTS", OBJECT, 28, "maps"), ("LIMIT", OBJECT, 4, ".rodata")]);
    assert_eq!(Manifest::from_elf(&object).expect("well-formed").facts, []);
}

#[test]
fn invalid_facts_are_refused_by_name() {
    for symbol in [
        "OFFSET_OF_sock",
        "OFFSET_OF_sock_DOT_",
        "SIZE_OF__DOT_sk_err",
        "ARG_OF_f_DOT_a_DOT_b",
        "VALUE_OF_reason",
        "HAS_",
        "HAS_f_DOT_part",
        "ADDRESS_OF_",
        "OFSET_OF_sock_DOT_sk_err",
    ] {
        let error = refusal(symbol, OBJECT, 4, ".rodata");
        assert!(error.contains(symbol), "{error}");
    }
    let error = refusal("OFFSET_OF_sock_DOT_sk_err", OBJECT, 8, ".rodata");
    assert!(error.contains("8 bytes"), "{error}");
    let error = refusal("ADDRESS_OF_tcp_reset", OBJECT, 4, ".rodata");
    assert!(error.contains("4 bytes"), "{error}");
}

#[test]
fn programs_that_would_never_be_attached_are_refused_by_name() {
    for (symbol, section) in [
        ("tcp_reset", "kprobe/tcp_reset"),
        ("__kprobe", "kprobe/tcp_reset"),
        ("tcp_reset__uprobe", "uprobe/tcp_reset"),
        ("tcp_reset__kprobe", "kprobe"),
        ("tcp_reset__kprobe", "kprobe/"),
        ("tcp_reset__fentry", "kprobe/tcp_reset"),
    ] {
        let error = refusal(symbol, FUNC, 8, section);
        assert!(error.contains(symbol), "{error}");
    }
}

#[test]
fn an_invalid_object_is_an_error() {
    let object = elf(&[("tcp_reset__kprobe", FUNC, 8, "kprobe/tcp_reset")]);
    assert!(Manifest::from_elf(b"not an object").is_err());
    for len in 0..object.len() {
        assert!(Manifest::from_elf(&object[..len]).is_err(), "{len} bytes");
    }
}

#[test]
fn a_path_is_displayed_as_in_c() {
    let Fact::Offset(path) = fact("OFFSET_OF_nf_conn_DOT_tuplehash_DOT_1_DOT_tuple") else {
        unreachable!()
    };
    assert_eq!(path.to_string(), "nf_conn.tuplehash[1].tuple");
}
