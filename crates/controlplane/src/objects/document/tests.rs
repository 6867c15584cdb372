use super::*;
use crate::objects::field::Field;

#[test]
fn documents_are_cut_at_markers_and_know_their_first_line() {
    let text = "# heading\n---\na: 1\n--- # second\nb: 2\n\n---\n# nothing here\n---\n--- {c: 3}\n...\n---x: 4\n";
    let documents: Vec<_> = split(text)
        .into_iter()
        .map(|d| (d.first_line, d.text))
        .collect();
    assert_eq!(
        documents,
        [
            (2, "   \na: 1\n".to_owned()),
            (4, "    # second\nb: 2\n\n".to_owned()),
            (10, "    {c: 3}\n...\n---x: 4\n".to_owned()),
        ]
    );
}

#[test]
fn a_file_without_markers_is_one_document() {
    assert_eq!(split("\u{feff}a: 1")[0].text, "a: 1");
    assert!(split("").is_empty());
    assert!(split("%YAML 1.2\n---\n").is_empty());
}

#[test]
fn values_know_their_lines() {
    let node = Node::parse("a:\n  b: 1\n  list:\n    - x: 1\n    - x: 2\n      y: [3]\n").unwrap();
    let line = |field: Field| node.line_of(field.segments());
    assert_eq!(line(Field::of("a")), 1);
    assert_eq!(line(Field::of("a.b")), 2);
    assert_eq!(line(Field::of("a.list").index(1).key("y").index(0)), 6);
    // What does not exist is where it would be.
    assert_eq!(line(Field::of("a.list").index(1).key("z")), 5);
}

#[test]
fn errors_tell_their_line_and_duplicate_keys_are_errors() {
    for (text, line) in [
        ("a: 1\nb: [\n", None),
        ("a: 1\na: 2\n", Some(2)),
        ("a: .nan\n", Some(1)),
    ] {
        let error = Node::parse(text).unwrap_err();
        assert!(!error.reason.contains('\n'), "{}", error.reason);
        if line.is_some() {
            assert_eq!(error.line, line, "{}", error.reason);
        }
    }
}

#[test]
fn a_broken_document_still_tells_its_name() {
    let text = "apiVersion: v1\nkind: Service # x\nmetadata:\n  labels:\n    name: other\n  name: \"web\"\n  \
                namespace: shop\nspec:\n  ports: [\n";
    let header = scan_header(text).unwrap();
    assert_eq!(header.kind.as_deref(), Some("Service"));
    assert_eq!(header.name.as_deref(), Some("web"));
    assert_eq!(header.namespace.as_deref(), Some("shop"));
    assert!(header.has_spec && !header.has_status);
}
