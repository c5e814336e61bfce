//! The rules tested: each finds what was planted for it, and nothing in its harmless neighbour.

use super::{
    FUNCTION_LINES, File, Found, LINE_CHARS, RULES, STOP_AT_LINES, TALK_AT_LINES, complaints::unproven_complaints,
    dependencies_without_a_reason, undeclared_modules,
};

/// Rule, path, a text that breaks it, the line that is to be reported, and a text that does not break it.
type Planted = (&'static str, &'static str, String, usize, String);

/// Texts are put together where the plain text would break a rule right here.
fn planted() -> Vec<Planted> {
    let plant = |rule, path, bad: &str, line, good: &str| (rule, path, bad.to_owned(), line, good.to_owned());
    let function = |lines: usize| format!("//! x\nfn f() {{\n{}}}\n", "    a();\n".repeat(lines - 2));
    let long_line = |chars: usize| format!("//! x\n// {}\n", "ä".repeat(chars - 3));
    let elsewhere = concat!("//! x\n// see ", "../", "shared/x\n");
    vec![
        plant("module docs", "src/a.rs", "use std;\n", 1, "//! What it is.\n"),
        plant("file length", "src/a.rs", &"\n".repeat(TALK_AT_LINES + 1), TALK_AT_LINES + 1, &"\n".repeat(TALK_AT_LINES)),
        plant("file length", "src/a.rs", &"\n".repeat(STOP_AT_LINES + 1), STOP_AT_LINES + 1, ""),
        plant("function length", "src/a.rs", &function(FUNCTION_LINES + 1), 2, &function(FUNCTION_LINES)),
        plant("function length", "src/a.rs", &function(FUNCTION_LINES + 1), 2, "trait T {\n fn f();\n}\ntype F = fn() -> u8;\n"),
        plant("white space", "src/a.rs", "//! x\n\tlet a;\n", 2, "//! x\n    let a;\n"),
        plant("white space", "README.md", "x \n", 1, "x\n"),
        plant("white space", "src/a.rs", &long_line(LINE_CHARS + 1), 2, &long_line(LINE_CHARS)),
        plant("banned words", "src/a.rs", "//! x\nfn f() { todo!() }\n", 2, "//! x\n// todo!\nlet a = \"todo!\";\n"),
        plant("banned words", "src/a.rs", "fn f() {\n dbg!(1);\n}\n", 2, "fn f() {\n mydbg!(1);\n}\n"),
        plant("banned words", "tests/it/a.rs", "#[ignore]\n", 1, "#[test]\n"),
        plant("banned words", "src/a.rs", "use super::super::b;\n", 1, "use super::b;\n"),
        plant("sleeping tests", "tests/it/a.rs", "//! x\nstd::thread::sleep(a);\n", 2, "//! x\neventually(a);\n"),
        plant(
            "sleeping tests",
            "src/a.rs",
            "#[cfg(test)]\nmod tests {\n tokio::time::sleep(d).await;\n}",
            3,
            "tokio::time::sleep(d).await;\n",
        ),
        plant("checks that cannot fail", "tests/it/a.rs", "fn t() {\n matches!(a, B);\n}", 2, "fn t() {\n assert!(matches!(a, B));\n}"),
        plant("checks that cannot fail", "src/a.rs", "let _ = matches!(a, B(..));\n", 1, "fn f() -> bool { matches!(a, B) }\n"),
        plant("bucket names", "src/store/utils.rs", "", 1, ""),
        plant("bucket names", "tests/it/common/mod.rs", "", 1, ""),
        plant("crate homes", "src/engine/mod.rs", "//! x\nuse rusqlite::Connection;\n", 2, "//! rusqlite::x\nuse crate::store;\n"),
        plant("crate homes", "src/config/csv.rs", "fn f(r: csv::Reader) {}\n", 1, "use crate::source::csv::Reader;\n"),
        plant("crate homes", "src/store/mod.rs", "use tokio_postgres;\n", 1, "use rusqlite::{self, Row};\nuse sled::Db;\n"),
        plant(
            "directions",
            "src/source/csv/mod.rs",
            "use crate::{\n data::Row,\n engine::Engine,\n};\n",
            1,
            "use crate::{data::Row, config::A};\n",
        ),
        plant("crate homes", "src/fact/mod.rs", "sled::open();\n", 1, "#[cfg(test)]\nmod tests {\n sled::open();\n}\n"),
        plant("crate homes", "src/source/mod.rs", "csv::Reader::new();\n", 1, "pub mod csv;\nfn f() { csv::snapshot() }\n"),
        plant("directions", "src/data/row.rs", "fn f() -> crate::fact::Fact {}\n", 1, "use crate::data::Value;\n"),
        plant("directions", "src/fact/mod.rs", "use crate::config::Config;\n", 1, "use crate::data::Row;\n"),
        plant("directions", "src/view/join.rs", "use crate::store::Store;\n", 1, "use crate::query::Plan;\n"),
        plant("elsewhere", "src/a.rs", elsewhere, 2, "//! x\n// see ../README.md\n"),
    ]
}

#[test]
fn every_rule_finds_what_was_planted_for_it() {
    for (name, path, bad, line, good) in planted() {
        let (_, rule) = RULES.iter().find(|(rule, _)| *rule == name).unwrap_or_else(|| panic!("no rule is called \"{name}\""));
        let found: Vec<usize> = rule(&File::new(path, &bad)).into_iter().map(|found| found.line).collect();
        assert_eq!(found, [line], "{name} on {path}: {bad}");
        // A path can be the violation itself.
        let neighbour = if bad == good { "src/store/rows.rs" } else { path };
        assert_eq!(rule(&File::new(neighbour, &good)), [], "{name} on {neighbour}: {good}");
    }
    for (name, _) in RULES {
        assert!(planted().iter().any(|(rule, ..)| *rule == name), "nothing is planted for \"{name}\"");
    }
}

#[test]
fn dependencies_need_a_reason() {
    let manifest = "[package]\nname = \"x\"\n[dependencies]\n# A heading.\na = \"1\" # why\nb = \"1\"\n\
        [dev-dependencies]\nc = \"1\" # \n[features]\nd = []\n";
    let found: Vec<usize> = dependencies_without_a_reason(manifest).into_iter().map(|Found { line, .. }| line).collect();
    assert_eq!(found, [6, 8]);
}

#[test]
fn modules_that_nobody_declares_are_found() {
    let files = [
        File::new("src/lib.rs", "pub mod a;\n// mod c;\n"),
        File::new("src/main.rs", ""),
        File::new("src/a/mod.rs", "mod b;\n"),
        File::new("src/a/b.rs", ""),
        File::new("src/a/bb.rs", ""),
        File::new("src/c.rs", ""),
    ];
    assert_eq!(undeclared_modules(&files), ["src/a/bb.rs", "src/c.rs"]);
}

#[test]
fn complaints_need_tests_that_exist() {
    let files = [File::new("tests/it/a.rs", "//! x\nasync fn it_holds() {}\n")];
    let row = |number: usize, shown: &str| format!("| {number} | [a](https://b) | c | {shown} |\n");
    let table = |shown: [&str; 25]| {
        let rows: String = shown.iter().enumerate().map(|(index, shown)| row(index + 1, shown)).collect();
        format!("# x\n\n| | complaint | what | shown by |\n|---|---|---|---|\n{rows}")
    };
    let mut shown = ["`it_holds`"; 25];
    assert_eq!(unproven_complaints(&table(shown), &files), []);
    (shown[3], shown[4]) = ("`it_holds`, `nobody_wrote_it`", "trust us");
    let lines: Vec<usize> = unproven_complaints(&table(shown), &files).iter().map(|found| found.line).collect();
    assert_eq!(lines, [8, 9]);
    let short = table(["`it_holds`"; 25]).replace(&row(25, "`it_holds`"), "");
    assert_eq!(unproven_complaints(&short, &files).len(), 1);
}
