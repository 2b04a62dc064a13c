use super::{build::Builder, *};

fn plain(byte_offset: u32, size: u32) -> Option<Member> {
    Some(Member { byte_offset, size, bitfield: false })
}

/// A struct with every kind of member that a path can go through.
fn conn() -> (Builder, TypeId) {
    let mut b = Builder::new();
    let u16_ = b.int("u16", 2);
    let u32_ = b.int("u32", 4);
    let pair = b.structure("pair", 4, &[("low", u16_, 0), ("high", u16_, 16)]);
    let pairs = b.array(pair, 2);
    let inner = b.structure("", 4, &[("port", u16_, 0), ("num", u16_, 16)]);
    let inner_qualified = b.qualified(inner);
    let either = b.union("", 4, &[("both", u32_, 0), ("", inner_qualified, 0)]);
    let either_alias = b.typedef("either_t", either);
    let pointer = b.ptr(pair);
    let conn = b.structure(
        "conn",
        24,
        &[("", either_alias, 32), ("pairs", pairs, 64), ("next", pointer, 128)],
    );
    (b, conn)
}

#[test]
fn members_of_nested_anonymous_types_count_from_the_outermost_struct() {
    let (b, conn) = conn();
    let btf = b.build();
    assert_eq!(btf.member(conn, &["both"]), plain(4, 4));
    assert_eq!(btf.member(conn, &["port"]), plain(4, 2));
    assert_eq!(btf.member(conn, &["num"]), plain(6, 2));
    assert_eq!(btf.member(conn, &["nothing"]), None);
    assert_eq!(btf.member(conn, &["nu"]), None);
}

#[test]
fn arrays_are_walked_by_index_or_as_their_first_element() {
    let (b, conn) = conn();
    let btf = b.build();
    assert_eq!(btf.member(conn, &["pairs"]), plain(8, 8));
    assert_eq!(btf.member(conn, &["pairs", "1"]), plain(12, 4));
    assert_eq!(btf.member(conn, &["pairs", "1", "high"]), plain(14, 2));
    assert_eq!(btf.member(conn, &["pairs", "high"]), plain(10, 2));
    assert_eq!(btf.member(conn, &["pairs", "2"]), None);
}

#[test]
fn a_path_does_not_cross_a_pointer() {
    let (b, conn) = conn();
    let btf = b.build();
    assert_eq!(btf.member(conn, &["next"]), plain(16, 8));
    assert_eq!(btf.member(conn, &["next", "low"]), None);
}

#[test]
fn bitfields_of_both_encodings_are_marked() {
    let mut b = Builder::new();
    let u32_ = b.int("u32", 4);
    let nibble = b.partial_int("u32", 4, 4);
    let new =
        b.members(("new", STRUCT, true), 8, &[("word", u32_, 0), ("bits", u32_, 3 << 24 | 34)]);
    let old = b.structure("old", 8, &[("word", u32_, 0), ("bits", nibble, 32)]);
    let btf = b.build();
    for id in [new, old] {
        assert_eq!(btf.member(id, &["word"]), plain(0, 4));
        let bits = btf.member(id, &["bits"]).expect("the member exists");
        assert!(bits.bitfield);
        assert_eq!(bits.byte_offset, 4);
    }
}

#[test]
fn a_definition_with_members_is_preferred_to_declarations() {
    let mut b = Builder::new();
    let u32_ = b.int("u32", 4);
    b.fwd("sock");
    b.structure("sock", 0, &[]);
    b.enumeration("reason", false, &[]);
    let sock = b.structure("sock", 4, &[("err", u32_, 0)]);
    b.structure("sock", 4, &[("other", u32_, 0)]);
    let reason = b.enumeration("reason", false, &[("A", 1)]);
    let wanted = [(Kind::Struct, "sock"), (Kind::Enum, "reason"), (Kind::Func, "sock")];
    let found = b.build().find_all(&wanted);
    assert_eq!(found.get(&wanted[0]), Some(&sock));
    assert_eq!(found.get(&wanted[1]), Some(&reason));
    assert_eq!(found.get(&wanted[2]), None);
}

#[test]
fn names_with_a_common_prefix_are_different_names() {
    let mut b = Builder::new();
    b.func("tcp_v4_send_reset", &[]);
    let short = b.func("tcp_v4_send", &[]);
    let found = b.build().find_all(&[(Kind::Func, "tcp_v4_send")]);
    assert_eq!(found.get(&(Kind::Func, "tcp_v4_send")), Some(&short));
}

#[test]
fn parameters_show_pointers_to_structs_and_enums_through_qualifiers() {
    let mut b = Builder::new();
    let int = b.int("int", 4);
    let skb = b.fwd("sk_buff");
    let const_skb = b.qualified(skb);
    let skb_pointer = b.ptr(const_skb);
    let void_pointer = b.ptr(0);
    let reason = b.enumeration("why", false, &[("A", 1)]);
    let reason_alias = b.typedef("why_t", reason);
    let params = [("ctx", void_pointer), ("skb", skb_pointer), ("why", reason_alias), ("n", int)];
    let func = b.func("send", &params);
    let proto = b.proto(&params);
    let pointer = b.ptr(proto);
    let trace = b.typedef("btf_trace_send", pointer);
    let btf = b.build();
    let types = |id| {
        let params = btf.prototype(id).expect("a function");
        params.into_iter().map(|p| p.ty).collect::<Vec<_>>()
    };
    let expected = vec![
        ParamType::Other,
        ParamType::PointerTo("sk_buff"),
        ParamType::Enum("why"),
        ParamType::Other,
    ];
    assert_eq!(types(func), expected);
    assert_eq!(types(trace), expected);
    assert_eq!(btf.prototype(int), None);
}

#[test]
fn enum_values_keep_sign_and_width() {
    let mut b = Builder::new();
    let unsigned = b.enumeration("u", false, &[("ONE", 1), ("MASK", 0xffff_0000)]);
    let signed = b.enumeration("s", true, &[("MINUS", u32::MAX)]);
    let wide = b.enum64("w", &[("BIG", 1 << 40)]);
    let btf = b.build();
    assert_eq!(btf.enum_values(unsigned), [("ONE", 1), ("MASK", 0xffff_0000)]);
    assert_eq!(btf.enum_values(signed), [("MINUS", -1)]);
    assert_eq!(btf.enum_values(wide), [("BIG", 1 << 40)]);
}

#[test]
fn a_module_continues_ids_and_names_of_its_base() {
    let (base, _) = conn();
    let base = base.build();
    let mut b = Builder::onto(&base);
    let base_conn = base.find_all(&[(Kind::Struct, "conn")])[&(Kind::Struct, "conn")];
    let own = b.structure("dest", 32, &[("conn", base_conn, 64)]);
    let module = Btf::parse_split(b.bytes(), &base).expect("valid");
    let wanted = (Kind::Struct, "dest");
    assert_eq!(module.find_all(&[wanted]).get(&wanted), Some(&own));
    assert_eq!(module.member(own, &["conn", "num"]), plain(14, 2));
}

#[test]
fn an_unknown_kind_is_reported_with_its_type_and_offset() {
    let mut b = Builder::new();
    b.int("u32", 4);
    b.raw("new", 20, false, 0, 0);
    let error = Btf::parse(b.bytes()).expect_err("kind 20 is unknown");
    assert_eq!(error, BtfError::UnknownKind { type_id: 2, offset: 40, kind: 20 });
}

#[test]
fn a_truncated_type_is_reported_with_its_type_and_offset() {
    let mut b = Builder::new();
    b.int("u32", 4);
    b.raw("long", STRUCT, false, 1, 4);
    let error = Btf::parse(b.bytes()).expect_err("the member is missing");
    assert_eq!(error, BtfError::Truncated { type_id: 2, offset: 40 });
}

#[test]
fn loops_of_typedefs_arrays_and_anonymous_members_end() {
    let mut b = Builder::new();
    let typedef = b.typedef("loop", 1);
    let array = b.array(2, 1);
    let structure = b.structure("s", 4, &[("", 3, 0), ("", 3, 0)]);
    let btf = b.build();
    for id in [typedef, array, structure] {
        assert_eq!(btf.member(id, &["x"]), None);
    }
    assert_eq!(btf.member(array, &[]), None);
}

/// xorshift64*. Seeded, so that a failure can be reproduced.
fn random(state: &mut u64) -> usize {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize
}

/// Runs every look-up on every type.
fn look_up_everything(btf: &Btf) {
    btf.find_all(&[(Kind::Struct, "conn"), (Kind::Func, "f"), (Kind::Enum, "")]);
    for id in 0..btf.end_id().saturating_add(2) {
        for path in [&["port"][..], &["pairs", "1", "high"], &["next", "low"], &[]] {
            btf.member(id, path);
        }
        btf.prototype(id);
        btf.enum_values(id);
    }
}

fn mixed_types() -> Builder {
    let (mut b, conn) = conn();
    let pointer = b.ptr(conn);
    b.func("f", &[("conn", pointer), ("", 0)]);
    b.enumeration("e", true, &[("A", 1), ("B", 2)]);
    b.enum64("w", &[("BIG", 1 << 40)]);
    b
}

#[test]
fn every_truncation_is_an_error_and_none_panics() {
    let mut b = mixed_types();
    for i in 0..200 {
        let name = format!("s{i}");
        b.structure(&name, 4, &[("a", 1, 0), ("", 5, 32)]);
    }
    let whole = b.bytes();
    assert!(whole.len() > 4096);
    for len in 0..4096 {
        assert!(Btf::parse(&whole[..len]).is_err(), "{len} bytes");
        // The same with a header that agrees with the length.
        let mut cut = whole[..len].to_vec();
        if let (Some(types_len), true) = (len.checked_sub(HEADER_LEN), len > HEADER_LEN) {
            cut[12..16].copy_from_slice(&(types_len as u32).to_ne_bytes());
            cut[16..20].copy_from_slice(&(types_len as u32).to_ne_bytes());
            cut[20..24].copy_from_slice(&0_u32.to_ne_bytes());
            if let Ok(btf) = Btf::parse(cut) {
                btf.member(conn().1, &["port"]);
            }
        }
    }
}

#[test]
fn changed_bytes_never_make_the_reader_panic() {
    let base = mixed_types();
    let mut module = Builder::onto(&base.build());
    module.structure("m", 8, &[("a", 1, 0), ("conn", 5, 32)]);
    let (base, module) = (base.bytes(), module.bytes());
    let mut parsed = 0;
    for seed in 1..=20_000_u64 {
        let mut state = seed;
        let mut bytes = if seed % 4 == 0 { &module } else { &base }.clone();
        for _ in 0..=random(&mut state) % 4 {
            let at = random(&mut state) % bytes.len();
            bytes[at] = random(&mut state) as u8;
        }
        let btf = if seed % 4 == 0 {
            Btf::parse(&*base).and_then(|base| Btf::parse_split(bytes, &base))
        } else {
            Btf::parse(bytes)
        };
        if let Ok(btf) = btf {
            look_up_everything(&btf);
            parsed += 1;
        }
    }
    assert!(parsed > 1000, "only {parsed} of 20000 got past the header");
}

#[test]
fn the_kernel_of_this_machine_has_the_known_socket_layout() {
    let path = "/sys/kernel/btf/vmlinux";
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) => {
            eprintln!("skipped: cannot read {path}: {error}");
            return;
        }
    };
    let btf = Btf::parse(bytes).expect("the running kernel's BTF is readable");
    let (common, sock) = ((Kind::Struct, "sock_common"), (Kind::Struct, "sock"));
    let found = btf.find_all(&[common, sock]);
    assert_eq!(btf.member(found[&common], &["skc_dport"]), plain(12, 2));
    let err = btf.member(found[&sock], &["sk_err"]).expect("sk_err");
    assert_eq!((err.size, err.bitfield), (4, false));
    // 568 on 5.10, 544 on 6.1, 284 from 6.12 on.
    assert!([284, 544, 568].contains(&err.byte_offset), "{err:?}");
}
