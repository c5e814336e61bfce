//! The store against a `BTreeSet`: after random steps over tiny domains, where everything collides, both must say the same.

use std::collections::BTreeSet;

use factsync::{
    fact::{Fact, Pattern, PatternValue, Value},
    target::embedded::Limits,
};
use proptest::{collection::vec, option, prelude::*};
use serde_json::json;

use super::server::{Client, Server};

#[derive(Debug, Clone)]
enum Step {
    Batch(Vec<Changeset>),
    /// A batch with an entry in it that is refused.
    Refused(Vec<Changeset>),
    Bulk {
        delete: Vec<Pattern>,
        tell: Vec<Fact>,
    },
    Get {
        predicate: Option<String>,
        args: Vec<PatternValue>,
    },
    Clear,
    Restart,
}

#[derive(Debug, Clone)]
enum Changeset {
    Inserts(Vec<Fact>),
    Deletes(Vec<Pattern>),
}

fn predicate() -> impl Strategy<Value = String> {
    prop_oneof!["p", "q"]
}

/// Mostly the same, so that facts of many arguments meet patterns too.
fn type_name() -> impl Strategy<Value = String> {
    prop_oneof![6 => Just("T"), 1 => Just("U")].prop_map(str::to_owned)
}

fn id() -> impl Strategy<Value = String> {
    prop_oneof![6 => Just("a"), 2 => Just("b"), 1 => Just("é +&%\"\\")].prop_map(str::to_owned)
}

fn arity() -> impl Strategy<Value = usize> {
    prop_oneof![4 => 1..=2_usize, 2 => Just(3_usize), 2 => 4..=5_usize]
}

fn fact() -> impl Strategy<Value = Fact> {
    let args = arity().prop_flat_map(|arity| vec((type_name(), id()).prop_map(|(type_name, id)| Value { type_name, id }), arity));
    (predicate(), args).prop_map(|(predicate, args)| Fact { predicate, args })
}

fn pattern_value() -> impl Strategy<Value = PatternValue> {
    (option::of(type_name()), option::weighted(0.3, id())).prop_map(|(type_name, id)| PatternValue { type_name, id })
}

/// One fact.
fn concrete() -> impl Strategy<Value = Pattern> {
    fact().prop_map(|fact| {
        let value = |arg: Value| PatternValue { type_name: Some(arg.type_name), id: Some(arg.id) };
        Pattern { predicate: fact.predicate, args: fact.args.into_iter().map(value).collect() }
    })
}

fn pattern() -> impl Strategy<Value = Pattern> {
    let wild = (predicate(), arity().prop_flat_map(|arity| vec(pattern_value(), arity)));
    prop_oneof![wild.prop_map(|(predicate, args)| Pattern { predicate, args }), concrete()]
}

fn changesets() -> impl Strategy<Value = Vec<Changeset>> {
    let changeset = prop_oneof![
        3 => vec(fact(), 0..8).prop_map(Changeset::Inserts),
        1 => vec(pattern(), 0..3).prop_map(Changeset::Deletes),
    ];
    vec(changeset, 0..4)
}

/// At least the 128 entries from which the store logs a batch, and no wildcard, so that it does.
fn large() -> impl Strategy<Value = Vec<Changeset>> {
    let changeset = prop_oneof![vec(fact(), 32..64).prop_map(Changeset::Inserts), vec(concrete(), 32..64).prop_map(Changeset::Deletes),];
    vec(changeset, 4..6)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => changesets().prop_map(Step::Batch),
        4 => large().prop_map(Step::Batch),
        1 => changesets().prop_map(Step::Refused),
        1 => (vec(pattern(), 0..3), vec(fact(), 0..5)).prop_map(|(delete, tell)| Step::Bulk { delete, tell }),
        8 => (option::weighted(0.8, predicate()), vec(pattern_value(), 0..=5)).prop_map(|(predicate, args)| Step::Get { predicate, args }),
        1 => Just(Step::Clear),
        1 => Just(Step::Restart),
    ]
}

/// Says whether any of them was new.
fn insert(model: &mut BTreeSet<Fact>, facts: &[Fact]) -> bool {
    facts.iter().fold(false, |changed, fact| changed | model.insert(fact.clone()))
}

/// Says whether any of them was there.
fn delete(model: &mut BTreeSet<Fact>, patterns: &[Pattern]) -> bool {
    let before = model.len();
    model.retain(|fact| !patterns.iter().any(|pattern| pattern.matches(fact)));
    model.len() != before
}

fn body(changesets: &[Changeset]) -> Vec<serde_json::Value> {
    let one = |changeset: &Changeset| match changeset {
        Changeset::Inserts(facts) => json!({"inserts": facts}),
        Changeset::Deletes(patterns) => json!({"deletes": patterns}),
    };
    changesets.iter().map(one).collect()
}

/// What SDKs make of a pattern: wildcards leave no trace, and so neither do trailing ones.
fn query(predicate: Option<&String>, args: &[PatternValue]) -> String {
    const PATH: &str = "/api/facts?";
    let mut query = form_urlencoded::Serializer::for_suffix(PATH.to_owned(), PATH.len());
    for (n, arg) in args.iter().enumerate() {
        query.extend_pairs(arg.type_name.iter().map(|type_name| (format!("args.{n}.type"), type_name)));
        query.extend_pairs(arg.id.iter().map(|id| (format!("args.{n}.id"), id)));
    }
    query.extend_pairs(predicate.map(|predicate| ("predicate", predicate)));
    query.finish()
}

fn selected(fact: &Fact, predicate: Option<&String>, args: &[PatternValue]) -> bool {
    let fits = |arg: &PatternValue, value: Option<&Value>| {
        arg.type_name.as_ref().is_none_or(|name| value.is_some_and(|value| value.type_name == *name))
            && arg.id.as_ref().is_none_or(|id| value.is_some_and(|value| value.id == *id))
    };
    predicate.is_none_or(|predicate| fact.predicate == *predicate) && args.iter().enumerate().all(|(n, arg)| fits(arg, fact.args.get(n)))
}

struct Trial {
    server: Server,
    client: Client,
    model: BTreeSet<Fact>,
    offset: i64,
}

impl Trial {
    fn new() -> Self {
        let server = Server::start_in_memory(Limits::Off);
        let client = server.connect();
        Self { server, client, model: BTreeSet::new(), offset: 0 }
    }

    fn step(mut self, step: &Step) -> Self {
        match step {
            Step::Batch(changesets) => {
                let mut changed = false;
                for changeset in changesets {
                    match changeset {
                        Changeset::Inserts(facts) => changed |= insert(&mut self.model, facts),
                        Changeset::Deletes(patterns) => changed |= delete(&mut self.model, patterns),
                    }
                }
                self.wrote("/api/batch", json!(body(changesets)), changed);
            }
            Step::Refused(changesets) => {
                let mut body = body(changesets);
                body.insert(body.len() / 2, json!({"inserts": [{"predicate": "p", "args": [{"type": "T", "id": "*"}]}]}));
                self.client.post("/api/batch", json!(body)).error(400);
            }
            Step::Bulk { delete: patterns, tell } => {
                let changed = delete(&mut self.model, patterns) | insert(&mut self.model, tell);
                self.wrote("/api/bulk", json!({"delete": patterns, "tell": tell}), changed);
            }
            Step::Get { predicate, args } => {
                let target = query(predicate.as_ref(), args);
                let listed = self.client.facts(&target);
                let want: BTreeSet<_> = self.model.iter().filter(|fact| selected(fact, predicate.as_ref(), args)).cloned().collect();
                assert_eq!(listed.len(), want.len(), "{target} lists each fact once");
                assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), want, "{target}");
            }
            Step::Clear => {
                let reply = self.client.request("POST", "/api/clear_data", None);
                self.model.clear();
                self.offset = reply.offset();
            }
            Step::Restart => {
                self.server = self.server.restart();
                self.client = self.server.connect();
            }
        }
        self
    }

    /// Lists everything. Not after each step: whatever reads makes the store settle its log first.
    fn check(mut self) -> Self {
        let all = self.client.facts("/api/facts");
        assert!(all.iter().zip(&all[1.min(all.len())..]).all(|(a, b)| a != b), "no fact is listed twice");
        assert_eq!(all.into_iter().collect::<BTreeSet<_>>(), self.model);
        self
    }

    /// Posts a change; the counter moves if, and only if, it makes a difference at any point of it.
    fn wrote(&mut self, path: &str, body: serde_json::Value, changed: bool) {
        let reply = self.client.post(path, body);
        assert_eq!(reply.status, 200, "{reply:?}");
        assert_eq!(reply.offset(), self.offset + i64::from(changed));
        self.offset = reply.offset();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]
    #[test]
    fn random_steps_leave_what_a_set_would_hold(steps in vec((step(), any::<bool>()), 1..24)) {
        let stepped = |trial: Trial, (step, checked): &(Step, bool)| {
            let trial = trial.step(step);
            if *checked { trial.check() } else { trial }
        };
        steps.iter().fold(Trial::new(), stepped).check();
    }
}
