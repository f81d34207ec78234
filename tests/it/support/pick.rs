//! Picking events out of many, and what many tests begin with.
//!
//! In: the events of a hub. Out: those of one table or aggregate, in the order that their ids state. Always: what
//! should be one and is not panics with all of them.

use super::{Event, Hub, Source, Walgate};

/// An SQL expression of 12 800 characters that PostgreSQL stores out of line: not to be compressed away.
pub const TOASTED: &str = "(SELECT string_agg(md5(i::text), '') FROM generate_series(1, 400) i)";

/// A source and a hub of each kind, each pair with a database of its own.
pub fn on_each_hub(test: &str) -> [(Source, Hub); 2] {
    let [file, kafka] = [Source::new(test), Source::new(test)];
    let hub = Hub::kafka(&kafka);
    [(file, Hub::file()), (kafka, hub)]
}

/// A source and a file hub.
pub fn on_file(test: &str) -> (Source, Hub) {
    (Source::new(test), Hub::file())
}

/// Walgate with its slot made and nothing copied but what is there now: what follows is streamed.
#[track_caller]
pub fn started(source: &Source, hub: &Hub) -> Walgate {
    let walgate = Walgate::new(source, hub);
    walgate.run_until_caught_up();
    walgate
}

/// The events of a table (`public.t`) in their order.
#[track_caller]
pub fn of_table<'a>(events: &'a [Event], table: &str) -> Vec<&'a Event> {
    in_order(events.iter().filter(|event| event.table() == table))
}

/// The events of an aggregate in their order.
#[track_caller]
pub fn of_aggregate<'a>(events: &'a [Event], aggregate_id: &str) -> Vec<&'a Event> {
    in_order(events.iter().filter(|event| event.aggregate_id() == Some(aggregate_id)))
}

/// The `op`s of an aggregate's events in their order.
#[track_caller]
pub fn ops<'a>(events: &'a [Event], aggregate_id: &str) -> Vec<&'a str> {
    of_aggregate(events, aggregate_id).into_iter().map(Event::op).collect()
}

/// The `op`s of a table's events in their order.
#[track_caller]
pub fn table_ops<'a>(events: &'a [Event], table: &str) -> Vec<&'a str> {
    of_table(events, table).into_iter().map(Event::op).collect()
}

/// The one event of a table that satisfies `is_it`.
#[track_caller]
pub fn only<'a>(events: &'a [Event], table: &str, is_it: impl Fn(&Event) -> bool) -> &'a Event {
    let found: Vec<&Event> = of_table(events, table).into_iter().filter(|event| is_it(event)).collect();
    match found.as_slice() {
        [one] => one,
        others => panic!("{} of {table} instead of one: {others:#?}\n{events:#?}", others.len()),
    }
}

fn in_order<'a>(events: impl Iterator<Item = &'a Event>) -> Vec<&'a Event> {
    let mut events: Vec<&Event> = events.collect();
    events.sort_by_key(|event| event.place());
    events
}
