//! The middleware of `examples/middleware`, as it is there: small applications with Oso's official SDKs and real PostgreSQL drivers.
//!
//! Two processes of an application each time, one that is written through and one that is read from. The embedded fact store needs no
//! token, so what the reads present is looked at on the wire, before it.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::future::join_all;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{TcpListener, TcpStream},
};

use crate::support::{
    command,
    daemon::Daemon,
    eventually_async,
    factsync::{DEVELOPMENT_KEY, Process, client, root},
    free_port,
    postgres::{Cluster, Major},
    tools_dir,
};

const ROUNDS: usize = 50;
/// What the applications wait for the fact store, and some more for a loaded machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// The lines of each request's head that asks for facts, in lower case, in the order in which they were seen.
type Heads = Arc<Mutex<Vec<String>>>;

/// A proxy before `upstream` that writes down what is asked of it; it ends with the test's runtime.
async fn recorder(upstream: String) -> (String, Heads) {
    let heads = Heads::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("it is bound"));
    let seen = heads.clone();
    tokio::spawn(async move {
        while let Ok((down, _)) = listener.accept().await {
            let Ok(up) = TcpStream::connect(&upstream).await else { continue };
            let ((mut down_read, mut down_write), (mut up_read, mut up_write)) = (down.into_split(), up.into_split());
            tokio::spawn(async move { copy(&mut up_read, &mut down_write).await });
            let heads = seen.clone();
            tokio::spawn(async move {
                let (mut text, mut buffer) = (String::new(), vec![0; 16 * 1024]);
                while let Ok(length @ 1..) = down_read.read(&mut buffer).await {
                    text.push_str(&String::from_utf8_lossy(&buffer[..length]));
                    while let Some((head, rest)) = text.split_once("\r\n\r\n") {
                        heads.lock().expect("nobody panics with it").push(head.to_lowercase());
                        text = rest.to_owned();
                    }
                    if up_write.write_all(&buffer[..length]).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    (url, heads)
}

/// The token in the last request that asked for `user`.
fn presented(heads: &Heads, user: usize) -> Option<String> {
    let heads = heads.lock().expect("nobody panics with it");
    let head = heads.iter().rev().find(|head| head.lines().next().is_some_and(|line| line.contains(&format!("args.0.id={user}&"))));
    let head = head.unwrap_or_else(|| panic!("nobody asked for user {user}: {heads:#?}"));
    head.lines().find_map(|line| line.strip_prefix("osooffset: ")).map(str::to_owned)
}

/// A running application.
struct Application {
    url: String,
    client: reqwest::Client,
    _daemon: Daemon,
}

/// What it answers: status, text, and the token of a `Set-Cookie`.
struct Answer {
    status: u16,
    text: String,
    token: Option<String>,
}

impl Application {
    fn start(mut command: Command, environment: &[(&str, &str)]) -> Self {
        command.arg(free_port().to_string()).envs(environment.iter().copied()).env("NO_PROXY", "127.0.0.1").stdout(Stdio::piped());
        let (daemon, pipes) = Daemon::spawn(command);
        let mut line = String::new();
        BufReader::new(pipes.stdout.expect("stdout is piped")).read_line(&mut line).expect("it says where it listens");
        let url = line.trim().strip_prefix("listening on ").unwrap_or_else(|| panic!("it does not start: \"{line}\"")).to_owned();
        Self { url, client: client(), _daemon: daemon }
    }

    #[expect(clippy::disallowed_methods, reason = "what a test asks for is small")]
    async fn ask(&self, method: &str, user: usize, token: Option<&str>) -> Answer {
        let method = method.parse().expect("a method");
        let mut request = self.client.request(method, format!("{}/members/{user}", self.url)).timeout(PATIENCE);
        if let Some(token) = token {
            request = request.header("cookie", format!("theme=dark; fact_token={token}"));
        }
        let response = request.send().await.expect("the application answers");
        let cookie = response.headers().get("set-cookie").map(|value| value.to_str().expect("ASCII").to_owned());
        let token = cookie.and_then(|cookie| Some(cookie.strip_prefix("fact_token=")?.split(';').next()?.to_owned()));
        let status = response.status().as_u16();
        Answer { status, text: response.text().await.expect("a body").trim().to_owned(), token }
    }
}

/// The parts that an application needs.
struct World {
    _cluster: Cluster,
    _state: TempDir,
    folder: String,
    address: String,
    store: Process,
    factsync: Process,
    heads: Heads,
    environment: Vec<(&'static str, String)>,
}

impl World {
    async fn start() -> Self {
        let cluster = Cluster::start(Major::V15);
        let database = cluster.database();
        cluster.psql(&database, "CREATE TABLE member (id bigint PRIMARY KEY)");
        let state = tempfile::tempdir().expect("a folder");
        let (address, folder) = (format!("127.0.0.1:{}", free_port()), state.path().to_str().expect("UTF-8").to_owned());
        let store = serve(&address, &folder);
        let database = cluster.url(&database);
        let run = ["run", "examples/middleware/middleware.yaml", "--plan", "unlimited", "--target", store.url()];
        let factsync = Process::spawn(&run, &[("DATABASE_URL", &database)]);
        factsync.wait_ready().await;
        let (url, heads) = recorder(address.clone()).await;
        let environment = vec![
            ("DATABASE_URL", database),
            ("FACTSYNC_URL", factsync.url().to_owned()),
            ("OSO_URL", url),
            ("OSO_AUTH", DEVELOPMENT_KEY.to_owned()),
        ];
        Self { _cluster: cluster, _state: state, folder, address, store, factsync, heads, environment }
    }

    fn application(&self, command: Command) -> Application {
        let environment: Vec<(&str, &str)> = self.environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
        Application::start(command, &environment)
    }
}

fn serve(address: &str, folder: &str) -> Process {
    Process::spawn(&["serve", "--limits", "off", "--listen", address, "--state", folder], &[])
}

/// Everything about one language, whose application `start` starts.
async fn reads_see_writes(start: impl Fn() -> Command) {
    let world = World::start().await;
    let (written, read) = (world.application(start()), world.application(start()));
    let mut last = None;
    for user in 1..=ROUNDS {
        for (method, text) in [("PUT", "a member"), ("DELETE", "no member")] {
            let answer = written.ask(method, user, last.as_deref()).await;
            assert_eq!((answer.status, &*answer.text), (200, text), "{method} {user}");
            let token = answer.token.unwrap_or_else(|| panic!("{method} {user} gives no token"));
            let seen = read.ask("GET", user, Some(&token)).await;
            assert_eq!((seen.status, &*seen.text), (200, text), "another process, after {method} {user}");
            assert_eq!(presented(&world.heads, user).as_ref(), Some(&token), "the SDK presents the client's token");
            assert_eq!(seen.token, None, "a token that the client has is not given again");
            last = Some(token);
        }
    }
    requests_do_not_mix(&read, &world.heads).await;
    nothing_is_claimed_too_early(&written, world).await;
}

/// A request without a token presents none, whatever others presented; and each presents its own, all at the same time.
async fn requests_do_not_mix(application: &Application, heads: &Heads) {
    assert_eq!(application.ask("GET", 900, None).await.text, "no member");
    assert_eq!(presented(heads, 900), None);
    let users: Vec<usize> = (1000..1020).collect();
    let tokens: Vec<String> = users.iter().map(|user| format!("token-{user}")).collect();
    join_all(users.iter().zip(&tokens).map(|(user, token)| application.ask("GET", *user, Some(token)))).await;
    for (user, token) in users.iter().zip(&tokens) {
        assert_eq!(presented(heads, *user).as_ref(), Some(token));
    }
    // Nonsense from a client is no header.
    for nonsense in ["a%0d%0aX-Evil:%201", "%ff", "%"] {
        assert_eq!(application.ask("GET", 901, Some(nonsense)).await.status, 200, "{nonsense}");
        assert!(heads.lock().expect("nobody panics with it").iter().all(|head| !head.contains("x-evil")));
    }
}

/// While facts cannot be delivered, a revocation is no success, and a grant says that it is not in force.
async fn nothing_is_claimed_too_early(application: &Application, world: World) {
    let World { store, factsync, address, folder, _cluster, _state, .. } = world;
    assert_eq!(application.ask("PUT", 1, None).await.status, 200);
    store.kill();
    let revoked = application.ask("DELETE", 1, None).await;
    assert_eq!((revoked.status, revoked.token), (503, None), "{}", revoked.text);
    let granted = application.ask("PUT", 2, None).await;
    assert_eq!((granted.status, granted.token), (202, None), "{}", granted.text);
    let store = serve(&address, &folder);
    // The fact store is asked again only after a while, and the application waits for two seconds each time.
    let again = eventually_async(PATIENCE, "the revocation is in force", async || {
        let again = application.ask("DELETE", 1, None).await;
        assert!(again.status == 200 || again.status == 503, "{}: {}", again.status, again.text);
        (again.status == 200).then_some(again)
    })
    .await;
    assert!(again.token.is_some(), "{}", again.text);
    assert_eq!(store.facts("has_role").await.len(), 1, "user 2 is a member, user 1 is not");
    factsync.kill();
    assert_eq!(application.ask("DELETE", 2, None).await.status, 503, "factsync is not there to be asked");
}

fn example(path: &str) -> String {
    root().join("examples/middleware").join(path).to_str().expect("UTF-8").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_see_writes_with_the_python_middleware() {
    let python = tools_dir().join("sdk-python/bin/python");
    assert!(python.exists(), "the official Python SDK is missing at \"{}\": run tests/run.sh", python.display());
    reads_see_writes(|| {
        let mut command = command(&python);
        // No compiled files beside the examples.
        command.args(["-B", &example("python/app.py")]);
        command
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_see_writes_with_the_node_middleware() {
    let packages = tools_dir().join("sdk-node/node_modules");
    assert!(packages.join("pg").exists(), "the PostgreSQL driver is missing in \"{}\": run tests/run.sh", packages.display());
    reads_see_writes(|| {
        let mut command = command("node");
        command.arg(example("node/app.js")).env("NODE_PATH", &packages);
        command
    })
    .await;
}
