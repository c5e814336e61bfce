//! Every type of `_id`, at the place where a stream is resumed: a resume token holds the `_id` of its event.

use mongodb::bson::{Binary, Bson, DateTime, Decimal128, Timestamp, doc, oid::ObjectId, spec::BinarySubtype};

use super::{app::App, views};

/// One of each type, and what is special in numbers.
fn ids() -> Vec<Bson> {
    let decimal = |text: &str| Bson::Decimal128(text.parse::<Decimal128>().expect("a decimal"));
    let binary = |subtype, length: u8| Bson::Binary(Binary { subtype, bytes: (0..length).collect() });
    vec![
        "text".into(),
        "".into(),
        "x".repeat(100_000).into(),
        7_i32.into(),
        i64::MAX.into(),
        2.5.into(),
        f64::NAN.into(),
        f64::NEG_INFINITY.into(),
        (-0.0).into(),
        decimal("3.50"),
        decimal("NaN"),
        decimal("1E+6000"),
        ObjectId::from_bytes([7; 12]).into(),
        true.into(),
        DateTime::from_millis(i64::MAX).into(),
        binary(BinarySubtype::Uuid, 16),
        binary(BinarySubtype::Generic, 200),
        doc! { "a": { "b": 1 }, "c": f64::NAN }.into(),
        Bson::Null,
        Bson::MinKey,
        Bson::MaxKey,
        Timestamp { time: 1, increment: 2 }.into(),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_resumed_behind_every_type_of_id() {
    let views = views::all().into_iter().filter(|view| ["has_role", "owns", "is_counted"].contains(&view.predicate()));
    let app = App::start(views.collect()).await;
    assert!(app.started(&[]).await.terminate().success());
    for id in ids() {
        let mut document = doc! { "role": "guest" };
        document.insert("_id", id.clone());
        let insert = doc! { "insert": "users", "documents": [document] };
        let delete = doc! { "delete": "users", "deletes": [{ "q": { "_id": { "$eq": id.clone() } }, "limit": 1 }] };
        for command in [insert, delete] {
            // It dies with this event as the last it knows.
            let mut process = app.run_to_death("committed:1");
            app.run_command(command).await;
            process.ended();
            let process = app.run(&[]);
            app.assert_settled(&process, &format!("resumed behind {id}")).await;
            assert!(process.terminate().success());
        }
    }
}
