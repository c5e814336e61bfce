//! The queries: SQL and, next to it, the plan that keeps its result up to date.
//!
//! The tables are `r(id, a, b)`, `s(id, a, b)` and `t(id, a, c)`, so column 0 is `id`, 1 is `a` and 2 is `b` or `c`.

use super::{
    compounds::{aggregates, except},
    operators::{
        Keep::{Matched, Unmatched},
        Plan, Rules,
        Table::{R, S, T},
    },
    zset::{Row, Value, Zset, less},
};

/// A query and its plan.
pub(super) struct Query {
    pub(super) name: &'static str,
    pub(super) sql: &'static str,
    pub(super) plan: fn(Rules) -> Plan,
}

/// Column `a` of two tables is equal.
const SAME_A: ((usize, usize), (usize, usize)) = ((0, 1), (1, 1));

pub(super) const JOINS: [Query; 7] = [
    Query {
        name: "filter",
        sql: "SELECT a, b FROM r WHERE a > 0 OR b = 'x'",
        plan: |rules| {
            let kept = rules.filter(rules.scan(R), |row| Some(matches!(row[1], Value::Int(1..)) || row[2] == Value::Text("x")));
            rules.columns(kept, &[1, 2])
        },
    },
    Query {
        name: "join",
        sql: "SELECT r.a, s.b FROM r JOIN s ON r.a = s.a",
        plan: |rules| rules.columns(rules.join(vec![rules.scan(R), rules.scan(S)], &[SAME_A], None), &[1, 5]),
    },
    Query {
        name: "join of three",
        sql: "SELECT r.b, t.c FROM r JOIN s ON r.a = s.a JOIN t ON s.b = t.c",
        plan: |rules| {
            let tables = vec![rules.scan(R), rules.scan(S), rules.scan(T)];
            rules.columns(rules.join(tables, &[SAME_A, ((1, 2), (2, 2))], None), &[2, 8])
        },
    },
    Query {
        name: "self join",
        sql: "SELECT x.id, y.id FROM r x JOIN r y ON x.a = y.a WHERE x.id < y.id",
        plan: |rules| {
            let pairs = rules.join(vec![rules.scan(R), rules.scan(R)], &[SAME_A], Some(|row| less(row[0], row[3])));
            rules.columns(pairs, &[0, 3])
        },
    },
    Query {
        name: "self join of three",
        sql: "SELECT x.b, y.b, z.b FROM r x JOIN r y ON x.a = y.a JOIN r z ON y.id = z.a",
        plan: |rules| {
            let tables = vec![rules.scan(R), rules.scan(R), rules.scan(R)];
            rules.columns(rules.join(tables, &[SAME_A, ((1, 0), (2, 1))], None), &[2, 5, 8])
        },
    },
    Query {
        name: "triangle",
        sql: "SELECT r.id, s.id, t.id FROM r, s, t WHERE r.a = s.a AND s.b = t.c AND r.id = t.a",
        plan: |rules| {
            let tables = vec![rules.scan(R), rules.scan(S), rules.scan(T)];
            rules.columns(rules.join(tables, &[SAME_A, ((1, 2), (2, 2)), ((0, 0), (2, 1))], None), &[0, 3, 6])
        },
    },
    Query {
        name: "two keys",
        sql: "SELECT r.id, s.id FROM r JOIN s ON r.a = s.a AND r.b = s.b",
        plan: |rules| {
            let on = [SAME_A, ((0, 2), (1, 2))];
            rules.columns(rules.join(vec![rules.scan(R), rules.scan(S)], &on, None), &[0, 3])
        },
    },
];

pub(super) const OUTER_JOINS: [Query; 6] = [
    Query {
        name: "left join",
        sql: "SELECT r.id, r.a, s.b FROM r LEFT JOIN s ON r.a = s.a",
        plan: |rules| rules.columns(rules.left(&|| rules.scan(R), &|| rules.scan(S), (1, 1), 3, None), &[0, 1, 5]),
    },
    Query {
        name: "left join with a residual",
        sql: "SELECT r.id, s.id FROM r LEFT JOIN s ON r.a = s.a AND s.id > r.id",
        plan: |rules| {
            let joined = rules.left(&|| rules.scan(R), &|| rules.scan(S), (1, 1), 3, Some(|row| less(row[0], row[3])));
            rules.columns(joined, &[0, 3])
        },
    },
    Query {
        name: "left join where null",
        sql: "SELECT r.a FROM r LEFT JOIN s ON r.a = s.a WHERE s.id IS NULL",
        plan: |rules| {
            let joined = rules.left(&|| rules.scan(R), &|| rules.scan(S), (1, 1), 3, None);
            rules.columns(rules.filter(joined, |row| Some(row[3] == Value::Null)), &[1])
        },
    },
    Query {
        name: "left self join",
        sql: "SELECT x.id, y.id FROM r x LEFT JOIN r y ON x.a = y.id",
        plan: |rules| rules.columns(rules.left(&|| rules.scan(R), &|| rules.scan(R), (1, 0), 3, None), &[0, 3]),
    },
    Query {
        name: "full join",
        sql: "SELECT r.id, s.id FROM r FULL JOIN s ON r.a = s.a",
        plan: |rules| rules.columns(rules.full(&|| rules.scan(R), &|| rules.scan(S), (1, 1), (3, 3)), &[0, 3]),
    },
    Query {
        name: "left of left join",
        sql: "SELECT r.id, s.id, t.id FROM r LEFT JOIN s ON r.a = s.a LEFT JOIN t ON t.c = s.b",
        plan: |rules| {
            let first = || rules.left(&|| rules.scan(R), &|| rules.scan(S), (1, 1), 3, None);
            rules.columns(rules.left(&first, &|| rules.scan(T), (5, 2), 3, None), &[0, 3, 6])
        },
    },
];

pub(super) const SUBQUERIES: [Query; 8] = [
    Query {
        name: "exists",
        sql: "SELECT a, b FROM r WHERE EXISTS (SELECT FROM s WHERE s.a = r.a AND s.b = 'x')",
        plan: |rules| {
            let matches = rules.filter(rules.scan(S), |row| Some(row[2] == Value::Text("x")));
            rules.columns(rules.semi(Matched, rules.scan(R), matches, (1, 1), None), &[1, 2])
        },
    },
    Query {
        name: "not exists",
        sql: "SELECT a, b FROM r WHERE NOT EXISTS (SELECT FROM s WHERE s.a = r.a)",
        plan: |rules| rules.columns(rules.semi(Unmatched, rules.scan(R), rules.scan(S), (1, 1), None), &[1, 2]),
    },
    Query {
        name: "not exists in itself",
        sql: "SELECT x.id FROM r x WHERE NOT EXISTS (SELECT FROM r y WHERE y.a = x.a AND y.id > x.id)",
        plan: |rules| {
            let last = rules.semi(Unmatched, rules.scan(R), rules.scan(R), (1, 1), Some(|row| less(row[0], row[3])));
            rules.columns(last, &[0])
        },
    },
    Query {
        name: "in",
        sql: "SELECT a FROM r WHERE a IN (SELECT a FROM s)",
        plan: |rules| rules.columns(rules.semi(Matched, rules.scan(R), rules.scan(S), (1, 1), None), &[1]),
    },
    Query {
        name: "not in",
        sql: "SELECT id FROM r WHERE a NOT IN (SELECT a FROM s)",
        plan: |rules| rules.columns(rules.not_in(rules.scan(R), rules.scan(S), (1, 1), (&[], &[])), &[0]),
    },
    Query {
        name: "correlated not in",
        sql: "SELECT id FROM r WHERE a NOT IN (SELECT s.a FROM s WHERE s.b IS NOT DISTINCT FROM r.b)",
        plan: |rules| rules.columns(rules.not_in(rules.scan(R), rules.scan(S), (1, 1), (&[2], &[2])), &[0]),
    },
    Query {
        name: "scalar subquery",
        sql: "SELECT r.id, (SELECT max(s.id) FROM s WHERE s.a = r.a) FROM r",
        plan: |rules| {
            let grouped =
                || rules.columns(rules.partition(vec![rules.columns(rules.scan(S), &[1, 0])], &[&[0]], Box::new(aggregates)), &[0, 5]);
            rules.columns(rules.left(&|| rules.scan(R), &grouped, (1, 0), 2, None), &[0, 4])
        },
    },
    Query {
        name: "counting subquery",
        sql: "SELECT r.id, (SELECT count(*) FROM s WHERE s.a = r.a) FROM r",
        plan: |rules| {
            let grouped = || rules.columns(rules.partition(vec![rules.scan(S)], &[&[1]], Box::new(aggregates)), &[0, 1]);
            let joined = rules.left(&|| rules.scan(R), &grouped, (1, 0), 2, None);
            // The count of nothing is 0 and not NULL.
            rules.map(joined, |row| vec![row[0], if row[4] == Value::Null { Value::Int(0) } else { row[4] }])
        },
    },
];

/// Columns `a` and `b` or `c`.
fn ab(rules: Rules, table: super::operators::Table) -> Plan {
    rules.columns(rules.scan(table), &[1, 2])
}

pub(super) const SETS: [Query; 7] = [
    Query {
        name: "distinct",
        sql: "SELECT DISTINCT r.a, s.b FROM r JOIN s ON r.a = s.a",
        plan: |rules| {
            let joined = rules.join(vec![rules.scan(R), rules.scan(S)], &[SAME_A], None);
            rules.distinct(rules.columns(joined, &[1, 5]), &[0, 1])
        },
    },
    Query {
        name: "union all",
        sql: "SELECT a, b FROM r UNION ALL SELECT a, c FROM t",
        plan: |rules| rules.union_all(vec![ab(rules, R), ab(rules, T)]),
    },
    Query {
        name: "union",
        sql: "SELECT a, b FROM r UNION SELECT a, c FROM t",
        plan: |rules| rules.distinct(rules.union_all(vec![ab(rules, R), ab(rules, T)]), &[0, 1]),
    },
    Query {
        name: "except",
        sql: "SELECT a, b FROM r EXCEPT SELECT a, c FROM t",
        plan: |rules| rules.set(ab(rules, R), ab(rules, T), &[0, 1], except),
    },
    Query {
        name: "except all",
        sql: "SELECT a, b FROM r EXCEPT ALL SELECT a, c FROM t",
        plan: |rules| rules.except_all(ab(rules, R), ab(rules, T), &[0, 1]),
    },
    Query {
        name: "intersect",
        sql: "SELECT a, b FROM r INTERSECT SELECT a, c FROM t",
        plan: |rules| rules.set(ab(rules, R), ab(rules, T), &[0, 1], |a, b| i64::from(a > 0 && b > 0)),
    },
    Query {
        name: "intersect all",
        sql: "SELECT a, b FROM r INTERSECT ALL SELECT a, c FROM t",
        plan: |rules| rules.set(ab(rules, R), ab(rules, T), &[0, 1], |a, b| a.min(b)),
    },
];

/// The row with the largest `id`.
fn last(_: &[Value], part: &[Zset]) -> Zset {
    part[0].iter().map(|(row, _)| (row.clone(), 1)).max().into_iter().collect()
}

/// How many, and the largest.
fn count_and_max(_: &[Value], part: &[Zset]) -> Zset {
    let all: Row = aggregates(&[], part).present().into_iter().next().expect("one row");
    Zset::of(vec![all[0], all[4]], 1)
}

pub(super) const GROUPS: [Query; 6] = [
    Query {
        name: "group by",
        sql: "SELECT b, count(*), count(a), sum(a), min(a), max(a), count(DISTINCT a) FROM r GROUP BY b",
        plan: |rules| rules.partition(vec![rules.columns(rules.scan(R), &[2, 1])], &[&[0]], Box::new(aggregates)),
    },
    Query {
        name: "having",
        sql: "SELECT r.b FROM r JOIN s ON r.a = s.a GROUP BY r.b HAVING count(*) > 1",
        plan: |rules| {
            let joined = rules.join(vec![rules.scan(R), rules.scan(S)], &[SAME_A], None);
            let grouped = rules.partition(vec![rules.columns(joined, &[2, 1])], &[&[0]], Box::new(aggregates));
            rules.columns(rules.filter(grouped, |row| less(Value::Int(1), row[1])), &[0])
        },
    },
    Query {
        name: "aggregate without groups",
        sql: "SELECT count(*), max(id) FROM r",
        plan: |rules| rules.aggregate(rules.columns(rules.scan(R), &[0]), Box::new(count_and_max)),
    },
    Query {
        name: "row_number",
        sql: "SELECT id FROM (SELECT id, row_number() OVER (PARTITION BY a ORDER BY id DESC) n FROM r) q WHERE n = 1",
        plan: |rules| rules.columns(rules.partition(vec![rules.scan(R)], &[&[1]], Box::new(last)), &[0]),
    },
    Query {
        name: "closure",
        sql: "WITH RECURSIVE q(x, y) AS (SELECT a, id FROM r WHERE a IS NOT NULL UNION SELECT q.x, r.id FROM q JOIN r ON r.a = q.y) \
              SELECT x, y FROM q",
        plan: |rules| rules.reach(rules.columns(rules.filter(rules.scan(R), |row| Some(row[1] != Value::Null)), &[1, 0])),
    },
    // Above, `id` is unique, so a node has one parent and nothing has two derivations; here a node has several.
    Query {
        name: "closure of a graph",
        sql: "WITH RECURSIVE q(x, y) AS (SELECT a, id % 4 FROM r WHERE a IS NOT NULL \
              UNION SELECT q.x, r.id % 4 FROM q JOIN r ON r.a = q.y) SELECT x, y FROM q",
        plan: |rules| {
            let edges = rules.filter(rules.scan(R), |row| Some(row[1] != Value::Null));
            rules.reach(rules.map(edges, |row| vec![row[1], if let Value::Int(id) = row[0] { Value::Int(id % 4) } else { Value::Null }]))
        },
    },
];

/// All of them.
pub(super) fn queries() -> impl Iterator<Item = &'static Query> {
    JOINS.iter().chain(&OUTER_JOINS).chain(&SUBQUERIES).chain(&SETS).chain(&GROUPS)
}
