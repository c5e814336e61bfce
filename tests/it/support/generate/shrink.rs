//! Shrinking: leave out what a failure does not need.

use super::{Case, transaction::Transaction};

impl Case {
    /// The smallest case found that still `fails`: first queries are dropped, then transactions, in ever smaller runs, then statements.
    pub(crate) async fn shrink(self, mut fails: impl AsyncFnMut(&Self) -> bool) -> Self {
        let mut case = self;
        case.queries = shortened(case.queries.clone(), async |queries| {
            !queries.is_empty() && fails(&Self { queries: queries.to_vec(), ..case.clone() }).await
        })
        .await;
        case.transactions = shortened(case.transactions.clone(), async |transactions| {
            fails(&Self { transactions: transactions.to_vec(), ..case.clone() }).await
        })
        .await;
        for index in 0..case.transactions.len() {
            let statements = case.transactions[index].statements.clone();
            let shorter = shortened(statements, async |statements| {
                let mut candidate = case.clone();
                candidate.transactions[index] = Transaction { statements: statements.to_vec() };
                fails(&candidate).await
            })
            .await;
            case.transactions[index].statements = shorter;
        }
        case
    }
}

/// `items` without runs that are not needed: half of them at a time, then a quarter, down to single ones.
async fn shortened<T: Clone>(mut items: Vec<T>, mut fails: impl AsyncFnMut(&[T]) -> bool) -> Vec<T> {
    let mut run = items.len().div_ceil(2);
    while run > 0 {
        let mut start = 0;
        while start < items.len() {
            let end = (start + run).min(items.len());
            let without = [&items[..start], &items[end..]].concat();
            if fails(&without).await {
                items = without;
            } else {
                start = end;
            }
        }
        run /= 2;
    }
    items
}

#[tokio::test]
async fn what_a_failure_does_not_need_is_dropped() {
    let items: Vec<u32> = (0..37).collect();
    let mut runs = 0;
    let shorter = shortened(items, async |items| {
        runs += 1;
        items.contains(&3) && items.contains(&30)
    })
    .await;
    assert_eq!(shorter, [3, 30]);
    assert!(runs < 60, "{runs} runs");
}
