//! A replica set of several nodes, for elections.

use std::time::Duration;

use mongodb::{
    Client,
    bson::{Document, doc},
};

use crate::support::{
    eventually_async,
    mongod::{Mongod, SET_NAME},
};

/// An election takes 3 s here, and several times that on a busy machine.
const ELECTION_DEADLINE: Duration = Duration::from_secs(90);
/// After how long without a primary the others elect one; MongoDB's own 10 s would only make tests wait.
const ELECTION_TIMEOUT_MS: i32 = 3_000;
/// For how long a primary that stepped down is not elected again.
const STEP_DOWN_SECONDS: i32 = 10;

/// Several nodes on one machine.
pub(crate) struct ReplicaSet {
    members: Vec<Mongod>,
}

impl ReplicaSet {
    /// Starts `count` nodes and waits for a primary; the others have caught up with it.
    pub(crate) async fn start(count: usize) -> Self {
        let mut members = Vec::new();
        for _ in 0..count {
            members.push(Mongod::uninitiated().await);
        }
        let set = Self { members };
        let members = set.members.iter().enumerate();
        let members: Vec<Document> =
            members.map(|(id, member)| doc! { "_id": id as i32, "host": format!("127.0.0.1:{}", member.port()) }).collect();
        let settings = doc! { "electionTimeoutMillis": ELECTION_TIMEOUT_MS };
        let initiate = doc! { "replSetInitiate": { "_id": SET_NAME, "members": members, "settings": settings } };
        set.direct(0).await.database("admin").run_command(initiate).await.expect("initiated");
        set.primary().await;
        eventually_async(ELECTION_DEADLINE, "the others have caught up", async || {
            let mut ready = 0;
            for member in 0..count {
                let hello = set.hello(member).await.unwrap_or_default();
                ready += usize::from(is(&hello, "isWritablePrimary") || is(&hello, "secondary"));
            }
            (ready == count).then_some(())
        })
        .await;
        set
    }

    /// A connection string for `database` that names every node.
    pub(crate) fn uri(&self, database: &str) -> String {
        let hosts: Vec<String> = self.members.iter().map(|member| format!("127.0.0.1:{}", member.port())).collect();
        format!("mongodb://{}/{database}?replicaSet={SET_NAME}", hosts.join(","))
    }

    /// A client that finds the primary, on the calling test's runtime.
    pub(crate) async fn client(&self) -> Client {
        Client::with_uri_str(self.uri("")).await.expect("a client")
    }

    /// The number of the node that is primary, as soon as there is one.
    pub(crate) async fn primary(&self) -> usize {
        eventually_async(ELECTION_DEADLINE, "a primary", async || self.primary_now().await).await
    }

    /// The number of the node that is primary at this moment, if there is one.
    pub(crate) async fn primary_now(&self) -> Option<usize> {
        for member in 0..self.members.len() {
            if self.hello(member).await.is_some_and(|hello| is(&hello, "isWritablePrimary")) {
                return Some(member);
            }
        }
        None
    }

    /// Has the primary step down, and gives its number; an election follows.
    pub(crate) async fn step_down(&self) -> usize {
        let primary = self.primary().await;
        let step_down = doc! { "replSetStepDown": STEP_DOWN_SECONDS, "force": true };
        self.direct(primary).await.database("admin").run_command(step_down).await.expect("stepped down");
        primary
    }

    /// Ends the primary as a crash would, and gives its number; an election follows.
    pub(crate) async fn kill_primary(&mut self) -> usize {
        let primary = self.primary().await;
        self.members[primary].kill();
        primary
    }

    /// Ends a node as a crash would.
    pub(crate) fn kill(&mut self, member: usize) {
        self.members[member].kill();
    }

    /// Starts a node again; it joins the set by itself.
    pub(crate) async fn restart(&mut self, member: usize) {
        self.members[member].restart().await;
    }

    /// A client of one node, whatever it is.
    pub(crate) async fn direct(&self, member: usize) -> Client {
        let uri = self.members[member].uri("") + "?directConnection=true&serverSelectionTimeoutMS=1000";
        Client::with_uri_str(uri).await.expect("a client")
    }

    async fn hello(&self, member: usize) -> Option<Document> {
        self.members[member].process.as_ref()?;
        self.direct(member).await.database("admin").run_command(doc! { "hello": 1 }).await.ok()
    }
}

fn is(hello: &Document, role: &str) -> bool {
    hello.get_bool(role).unwrap_or(false)
}
