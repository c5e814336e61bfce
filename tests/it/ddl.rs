//! Schema changes: what each of them does to the views, and that nothing wrong is written meanwhile.
mod campaign;
mod columns;
mod down;
mod meaning;
mod published;
mod rewritten;
mod tables;
