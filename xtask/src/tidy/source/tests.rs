use super::*;

const HEAD: &str = "//! Doc.\n";

/// The rules that `code` breaks, as `line:rule`.
fn broken(path: &str, code: &str) -> Vec<String> {
    let findings = check(Path::new(path), &format!("{HEAD}{code}"));
    findings
        .iter()
        .map(|finding| format!("{}:{}", finding.line, finding.rule))
        .collect()
}

fn body(lines: usize) -> String {
    "    step();\n".repeat(lines)
}

#[test]
fn tidy_code_has_no_findings() {
    let code = "fn f() { let (tx, rx) = channel(1); g(\"todo!()\", tx, rx); } // unsafe, let (_, a) = channel()\n";
    assert!(broken("crates/x/src/a.rs", code).is_empty());
}

#[test]
fn dropped_channel_ends_are_found() {
    let check = |code: &str| broken("crates/x/src/a.rs", code);
    assert_eq!(
        check("fn f() { let (_, rx) = watch::channel(()); }"),
        ["2:channel-end"]
    );
    assert_eq!(
        check("fn f() {\n let (\n tx, _) =\n mpsc::channel::<u8>(1);\n}"),
        ["3:channel-end"]
    );
    assert_eq!(check("fn f() { let (_tx, rx) = channel(()); }"), [""; 0]);
    assert_eq!(
        check("fn f() { let (_, x) = pair(); let c = channel(); }"),
        [""; 0]
    );
    // Tests lose channel ends as well as anything else.
    assert_eq!(
        broken(
            "crates/x/src/a/tests.rs",
            "fn f() { let (_, rx) = channel(1); }"
        ),
        ["2:channel-end"]
    );
}

#[test]
fn forbidden_words_are_found() {
    let check = |code: &str| broken("crates/x/src/a/tests.rs", code);
    assert_eq!(
        check("fn f() { todo!() }\nfn g() { unimplemented!() }"),
        ["2:forbidden", "3:forbidden"]
    );
    assert_eq!(
        check("#[test]\n#[ignore = \"slow\"]\nfn f() {}"),
        ["3:forbidden"]
    );
    assert_eq!(check("fn f() { my_todo!() }"), [""; 0]);
    assert_eq!(check("// TODO: later\n// TODO(#12): later"), ["2:todo"]);
}

#[test]
fn unsafe_is_found_outside_its_places() {
    let code = "fn f() { unsafe { g() } }";
    assert_eq!(broken("crates/types/src/a.rs", code), ["2:unsafe"]);
    assert!(broken("crates/net/src/sockopt.rs", code).is_empty());
    assert!(broken("crates/capture/src/ebpf/load.rs", code).is_empty());
    assert!(broken("crates/types/src/a.rs", "#![expect(unsafe_code)]").is_empty());
}

#[test]
fn long_functions_are_found() {
    let function = |lines: usize| format!("fn f() {{\n{}}}\n", body(lines));
    let check = |code: &str| broken("crates/x/src/a.rs", code);
    assert!(check(&function(58)).is_empty());
    assert_eq!(check(&function(59)), ["2:function-length"]);
    let table = |lines: usize| format!("// tidy: table\n#[rustfmt::skip]\npub {}", function(lines));
    assert!(check(&table(98)).is_empty());
    assert_eq!(check(&table(99)), ["4:function-length"]);
    // A mark of another item does not count.
    let other = format!("// tidy: table\nconst X: u8 = 1;\n{}", function(59));
    assert_eq!(check(&other), ["4:function-length"]);
    // Braces in text do not close a body; declarations and types have none.
    let quoted = format!(
        "trait T {{ fn d(x: [u8; 2]); }}\nfn f(g: fn(u8)) {{\n \"}}\";\n{}}}\n",
        body(60)
    );
    assert_eq!(check(&quoted), ["3:function-length"]);
}

#[test]
fn long_files_are_found_without_their_tests() {
    let check = |path: &str, code: &str| broken(path, code);
    let line = |count: usize| "const X: u8 = 1;\n".repeat(count);
    assert!(check("crates/x/src/a.rs", &line(499)).is_empty());
    assert_eq!(check("crates/x/src/a.rs", &line(500)), ["1:file-length"]);
    assert_eq!(check("ztunnel/src/main.rs", &line(100)), ["1:file-length"]);
    let tests = format!("{}#[cfg(test)]\nmod tests {{\n{}}}\n", line(499), line(300));
    assert!(check("crates/x/src/a.rs", &tests).is_empty());
    let declared = format!("#[cfg(test)]\nmod tests;\n{}", line(500));
    assert_eq!(check("crates/x/src/a.rs", &declared), ["1:file-length"]);
}

#[test]
fn test_files_are_told_from_the_harness() {
    let long = "const X: u8 = 1;\n".repeat(600);
    for test in [
        "crates/x/src/a/tests.rs",
        "crates/x/src/a_tests.rs",
        "crates/x/tests/b.rs",
        "tests/it/c.rs",
    ] {
        assert!(broken(test, &long).is_empty(), "{test}");
    }
    assert_eq!(broken("tests/src/mesh.rs", &long), ["1:file-length"]);
}

#[test]
fn modules_have_a_doc_and_no_globs() {
    let path = Path::new("crates/x/src/a.rs");
    let findings = check(path, "use std::io;\n");
    assert_eq!(findings[0].rule, "module");
    assert!(check(path, "#![no_std]\n//! Doc.\n").is_empty());
    assert_eq!(broken("crates/x/src/a/mod.rs", ""), ["1:module"]);
    assert_eq!(broken("crates/x/src/a.rs", "use super::*;"), ["2:glob"]);
    let in_tests = "#[cfg(test)]\nmod tests {\n    use super::*;\n}\n";
    assert!(broken("crates/x/src/a.rs", in_tests).is_empty());
}
