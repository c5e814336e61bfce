//! Schema changes: what each of them does to the views, and that nothing wrong is written meanwhile.
//!
//! Each case commits DDL under a running factsync and writes to the table right after it ([`campaign`]); the same cases run while it is
//! down ([`down`]). Every state of a recording fact store must lie between what the queries returned before, after the DDL and after the
//! writes: no fact is missing that all of these answers have, none is there that none of them has. A view of another table is written to
//! all the while; it is never read again. At the end the facts are what the queries return.
//!
//! | change | must |
//! |---|---|
//! | new, dropped, renamed, rewritten unused column; default; index, trigger, `VACUUM FULL`, statistics ([`columns`]) | be free |
//! | used column renamed or dropped; label named by the query renamed | stop its views, the others go on |
//! | another type (rewrite or not, other values, same type), label added or renamed, generated expression | read again |
//! | primary key, `REPLICA IDENTITY` FULL, INDEX | read again |
//! | no identity: no key, `NOTHING`, index dropped; 18: a generated column in it | stop, and the application can write |
//! | dropped and made anew, swapped, a view in the place, that view replaced ([`tables`]) | read again |
//! | dropped, renamed, moved out of `search_path` | stop |
//! | `TRUNCATE CASCADE` | be right |
//! | partition made, attached with rows, detached, truncated, dropped; child made, let go | read again |
//! | function, `search_path`, a shadowing table ([`meaning`]) | read again, or stop with the statement |
//! | row-level security, a policy | stop, and remove nothing |
//! | `REVOKE` | stop refresh views only |
//! | settings that shape texts; privileges of others | be free |
//! | publication: table out, in again, `publish`, row filter, column list, dropped ([`published`]) | be right |
//! | the same without the right to mend it | stop with the statement, the others go on |
//! | `UNLOGGED` for a while, values rewritten under the same type, all tables published | read again |
//! | rewritten, truncated, made anew while it is read ([`rewritten`]) | be right; `reconcile` fails and writes nothing |
//! | any of these while down, also when it is undone before the start ([`down`]) | the same |
//!
//! Not here: tablespaces (a file of its own, as with `VACUUM FULL`), labels that exchange their names (see the README).

mod campaign;
mod columns;
mod down;
mod meaning;
mod published;
mod rewritten;
mod tables;
