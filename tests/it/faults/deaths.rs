//! Deaths in the middle of a failure.

use factsync::crash::Moment;

use super::{
    Scene,
    store::{Act, Store, error},
};
use crate::crash::moments;

/// With each of the two the fact store is in another state than the queues say.
#[tokio::test(flavor = "multi_thread")]
async fn atomic_a_death_in_the_middle_of_a_failure() {
    for moment in moments::of(moments::Scene::Fault) {
        let state = tempfile::tempdir().expect("a folder");
        let args = ["--state", state.path().to_str().expect("UTF-8")];
        let scene = Scene::launch(Store::start(&[]).await, &["a", "b", "c"], &args, &[]);
        scene.process.wait_ready().await;
        scene.holds(&["a", "b", "c"]).await;
        let Scene { folder, store, process } = scene;
        assert!(process.terminate().success());
        if moment == Moment::Parked {
            store.obey(|request| {
                let refused = request.changes().iter().any(|(_, fact)| fact.contains("bad"));
                if refused { Act::Say(error(422, "no such user")) } else { Act::Serve }
            });
        } else {
            // Applied, and the answer is lost.
            store.script([Act::Cut { applied: true }]);
        }
        let process = Scene::follower(&folder, &store, &args, &[("FACTSYNC_DIE_AT", &format!("{}:1", moment.name()))]);
        super::write(&folder, &["b", "bad", "d"]);
        moments::assert_died(process, &moment.name());
        store.behave();
        super::write(&folder, &["b", "e"]);
        let process = Scene::follower(&folder, &store, &args, &[]);
        Scene { folder, store, process }.recovered(&["b", "e"]).await;
    }
}
