//! A plan for people: one operator a line, its inputs indented below it. `#2` is a row's third column; of a join, `1.#2` that of its
//! second input.

use std::fmt;

use crate::query::{Aggregate, AggregateKind, Expr, Order, OuterKind, Plan, SemiKind, SetKind, Srf, ViewPlan};

impl fmt::Display for ViewPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        outline(&self.plan, Some(self), 0, f)
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        outline(self, None, 0, f)
    }
}

fn outline(plan: &Plan, view: Option<&ViewPlan>, depth: usize, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    if depth > 0 {
        writeln!(f)?;
    }
    write!(f, "{}", "  ".repeat(depth))?;
    operator(plan, view, f)?;
    inputs(plan).into_iter().try_for_each(|input| outline(input, view, depth + 1, f))
}

fn inputs(plan: &Plan) -> Vec<&Plan> {
    match plan {
        Plan::Scan { .. } | Plan::Values { .. } | Plan::Itself { .. } => Vec::new(),
        Plan::Filter { input, .. }
        | Plan::Map { input, .. }
        | Plan::Remote { input, .. }
        | Plan::Unnest { input, .. }
        | Plan::Unpack { input, .. } => {
            vec![input]
        }
        Plan::Group { input, .. } | Plan::Top { input, .. } | Plan::Clock { input, .. } | Plan::Distinct(input) => vec![input],
        Plan::Join { inputs, .. } | Plan::UnionAll(inputs) => inputs.iter().collect(),
        Plan::Outer { left, right, .. }
        | Plan::Semi { left, right, .. }
        | Plan::NotIn { left, right, .. }
        | Plan::Set { left, right, .. } => {
            vec![left, right]
        }
        Plan::Recursive { base, step, .. } => vec![base, step],
    }
}

fn operator(plan: &Plan, view: Option<&ViewPlan>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match plan {
        Plan::Scan { table } => match view.and_then(|view| view.tables.get(table)) {
            Some(found) => write!(f, "scan {} {:?}", found.title, found.columns),
            None => write!(f, "scan {table}"),
        },
        Plan::Values { rows, width } => write!(f, "values: {} rows of {width} columns", rows.len()),
        Plan::Filter { condition, .. } => write!(f, "filter {}", Shown(condition)),
        Plan::Map { columns, .. } => write!(f, "map {}", list(columns.iter().map(Shown))),
        Plan::Remote { columns, .. } => {
            write!(f, "remote {}", list(columns.iter().map(|column| format!("{} over {}", column.sql, places(&column.args)))))
        }
        Plan::Unnest { function, argument, .. } => {
            let name = match function {
                Srf::Unnest => "unnest",
                Srf::JsonbArrayElementsText => "jsonb_array_elements_text",
                Srf::JsonArrayElementsText => "json_array_elements_text",
            };
            write!(f, "{name} {}", Shown(argument))
        }
        Plan::Unpack { column, width, .. } => write!(f, "rows of {width} columns in #{column}"),
        Plan::Join { on, filter, .. } => {
            let pair = |side: (usize, usize)| format!("{}.#{}", side.0, side.1);
            write!(f, "join {}", list(on.iter().map(|on| format!("{} = {}", pair(on.left), pair(on.right)))))?;
            also(filter.as_ref(), f)
        }
        Plan::Outer { kind, on, filter, .. } => {
            write!(f, "{} join {}", if *kind == OuterKind::Left { "left" } else { "full" }, pairs(on))?;
            also(filter.as_ref(), f)
        }
        Plan::Semi { kind, on, filter, .. } => {
            let name = match kind {
                SemiKind::Semi => "semi",
                SemiKind::Anti => "anti",
                SemiKind::Mark => "mark",
            };
            write!(f, "{name} join {}", pairs(on))?;
            also(filter.as_ref(), f)
        }
        Plan::NotIn { on, operand, .. } => write!(f, "not in {} for {}", pairs(&[*operand]), pairs(on)),
        Plan::UnionAll(_) => write!(f, "union all"),
        Plan::Distinct(_) => write!(f, "distinct"),
        Plan::Set { kind, .. } => f.write_str(match kind {
            SetKind::Except => "except",
            SetKind::ExceptAll => "except all",
            SetKind::Intersect => "intersect",
            SetKind::IntersectAll => "intersect all",
        }),
        Plan::Group { keys, aggregates, .. } => write!(f, "group by {}: {}", places(keys), list(aggregates.iter().map(aggregate))),
        Plan::Top { partition, order, limit, .. } => {
            write!(f, "first {limit} of each {} by {}", places(partition), list(order.iter().map(term)))
        }
        Plan::Recursive { .. } => write!(f, "recursive"),
        Plan::Itself { .. } => write!(f, "itself"),
        Plan::Clock { clock, .. } => write!(f, "clock {}", Shown(&clock.condition)),
    }
}

fn also(filter: Option<&Expr>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    filter.map_or(Ok(()), |filter| write!(f, " and {}", Shown(filter)))
}

fn list(items: impl Iterator<Item = impl fmt::Display>) -> String {
    items.map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

fn places(columns: &[usize]) -> String {
    format!("({})", list(columns.iter().map(|column| format!("#{column}"))))
}

fn pairs(on: &[(usize, usize)]) -> String {
    format!("({})", list(on.iter().map(|(left, right)| format!("#{left} = #{right}"))))
}

fn aggregate(of: &Aggregate) -> String {
    let name = match of.kind {
        AggregateKind::CountAll => "count(*)",
        AggregateKind::Count => "count",
        AggregateKind::Sum => "sum",
        AggregateKind::Min => "min",
        AggregateKind::Max => "max",
        AggregateKind::BoolAnd => "bool_and",
        AggregateKind::BoolOr => "bool_or",
        AggregateKind::Single => "single",
    };
    let distinct = if of.distinct { "distinct " } else { "" };
    of.column.map_or_else(|| name.to_owned(), |column| format!("{name}({distinct}#{column})"))
}

fn term(order: &Order) -> String {
    let direction = if order.descending { " desc" } else { "" };
    let nulls = if order.nulls_first { " nulls first" } else { "" };
    format!("#{}{direction}{nulls}", order.column)
}

/// An expression for people.
struct Shown<'e>(&'e Expr);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = |args: &[Expr], by: &str| args.iter().map(|arg| Shown(arg).to_string()).collect::<Vec<_>>().join(by);
        match self.0 {
            Expr::Column { index, .. } => write!(f, "#{index}"),
            Expr::Const { text: None, .. } => write!(f, "NULL"),
            Expr::Const { text: Some(text), .. } => write!(f, "{text:?}"),
            Expr::Call { function, args } => write!(f, "{}({})", function.name, all(args, ", ")),
            Expr::And(args) => write!(f, "({})", all(args, " and ")),
            Expr::Or(args) => write!(f, "({})", all(args, " or ")),
            Expr::Not(arg) => write!(f, "not {}", Shown(arg)),
            Expr::IsNull(arg) => write!(f, "{} is null", Shown(arg)),
            Expr::IsBool(arg, None) => write!(f, "{} is unknown", Shown(arg)),
            Expr::IsBool(arg, Some(value)) => write!(f, "{} is {value}", Shown(arg)),
            Expr::Distinct { args, .. } => write!(f, "({})", all(&args[..], " is distinct from ")),
            Expr::Case { whens, otherwise } => {
                write!(f, "case")?;
                for (condition, result) in whens {
                    write!(f, " when {} then {}", Shown(condition), Shown(result))?;
                }
                write!(f, " else {} end", Shown(otherwise))
            }
            Expr::Coalesce(args) => write!(f, "coalesce({})", all(args, ", ")),
            Expr::NullIf { args, .. } => write!(f, "nullif({})", all(&args[..], ", ")),
            Expr::AnyOf { function, operand, items, all: every } => {
                let word = if *every { "all" } else { "any" };
                write!(f, "{}({}, {word} of {})", function.name, Shown(operand), all(items, ", "))
            }
            Expr::AnyElement { function, operand, array, all: every, .. } => {
                write!(f, "{}({}, {} {})", function.name, Shown(operand), if *every { "all" } else { "any" }, Shown(array))
            }
            Expr::Now(now) if now.shift == 0 => write!(f, "now()"),
            Expr::Now(now) => write!(f, "now() + {}us", now.shift),
        }
    }
}
