//! Captures the seeds of the target `tree` from a running server: the trees of the queries that the integration tests bind, and what the
//! server's catalogues say about everything in them. `capture.sh` starts the servers.

#[expect(dead_code, reason = "the tests compare rows too")]
#[path = "../../tests/it/binding/queries.rs"]
mod queries;

use std::{fs, path::PathBuf};

use factsync::{
    config::{Place, PostgresConfig, SecretString, View},
    source::postgres::fuzzing::captured,
};

/// What stands for a target to start this.
pub const NAME: &str = "capture";

/// Captures from the server at `CAPTURE_URL`, whose database has the schema of the queries, for the version `CAPTURE_VERSION`. Ends the
/// process.
pub fn run() -> ! {
    let get = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
    let (url, version) = (get("CAPTURE_URL"), get("CAPTURE_VERSION"));
    if url.is_empty() {
        print(queries::SCHEMA);
    }
    let home = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let all = queries::INCREMENTAL.iter().chain(queries::REFRESH).map(|(query, _)| *query);
    let view = |query: &str| View {
        // A query of another width than this is left out by the analysis, so each has one view of each width.
        fact_type: "f(T:_)".parse().expect("a signature"),
        place: Place { file: PathBuf::from("capture"), line: 1, column: 1 },
        query: query.to_owned(),
    };
    let widths = ["f(T:_)", "f(T:_, T:_)", "f(T:_, T:_, T:_)", "f(T:_, T:_, T:_, T:_)", "f(T:_, T:_, T:_, T:_, T:_)"];
    let of_widths = |query: &str| widths.map(|width| View { fact_type: width.parse().expect("a signature"), ..view(query) });
    let config = PostgresConfig {
        connection_string: SecretString::from(url),
        ssl: None,
        slot: "factsync".to_owned(),
        views: all.flat_map(of_widths).collect(),
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let (trees, names) = runtime.block_on(captured(&config)).unwrap_or_else(|error| panic!("{error}"));
    fs::write(home.join(format!("names/{version}.json")), names.to_json().expect("JSON")).expect("written");
    for (number, tree) in trees.iter().enumerate() {
        fs::write(home.join(format!("corpus/tree/{version}-{number:03}")), format!("{version}\n{tree}")).expect("written");
    }
    end(0)
}

fn print(text: &str) -> ! {
    use std::io::Write;
    std::io::stdout().write_all(text.as_bytes()).expect("printed");
    end(0)
}

#[expect(clippy::disallowed_methods, reason = "there is no main to return to, and no task to end")]
fn end(code: i32) -> ! {
    std::process::exit(code)
}
