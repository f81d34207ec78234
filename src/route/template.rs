//! The templates that name topics and event types: `{source}.{schema}.{table}`, `Order{Op}` (DESIGN.md, section 3).
//!
//! In comes the text of the configuration, out goes a template whose placeholders are all known; `{{` and `}}`
//! stand for braces. Both are rendered once for a table (and an operation), never for a row.
//!
//! A topic comes in two spellings: `raw`, as the template says, and `legal`, as Kafka takes it: every
//! character that is not one of `a-z A-Z 0-9 . _ -` is one `_`, at most 249 characters, never `.` or `..`
//! (`org.apache.kafka.common.internals.Topic`). Two tables with one legal name are for the caller to refuse,
//! who sees all tables; see [`Topic::collision_key`].

/// The longest name that Kafka gives a topic, in characters. With `.jsonl` it is also the longest file name.
pub const TOPIC_LENGTH_MAX: usize = 249;

/// Why a text is no template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// Nothing in it.
    #[error("the template is empty")]
    Empty,
    /// A placeholder that this template does not have.
    #[error("unknown placeholder {{{name}}}")]
    Unknown {
        /// What stands between the braces.
        name: String,
        /// The placeholders that exist, with their braces.
        known: String,
    },
    /// A brace without its partner.
    #[error("a {0} stands alone")]
    Brace(char),
}

impl TemplateError {
    /// What to write instead.
    pub fn remedy(&self) -> String {
        match self {
            TemplateError::Empty => "leave the key out to take its default".to_owned(),
            TemplateError::Unknown { known, .. } => format!("known are {known}"),
            TemplateError::Brace(brace) => format!("write {brace}{brace} for the character itself"),
        }
    }
}

/// Names one topic for each table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicTemplate(Vec<Piece<TopicField>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TopicField {
    Source,
    Schema,
    Table,
    AggregateType,
}

/// What a topic template may name.
#[derive(Clone, Copy, Debug)]
pub struct TopicNames<'a> {
    /// `source.name`
    pub source: &'a str,
    /// The table's schema.
    pub schema: &'a str,
    /// The table's name.
    pub table: &'a str,
    /// The rule's `aggregate_type`, by default the table's name.
    pub aggregate_type: &'a str,
}

/// A topic's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    /// As the template says.
    pub raw: String,
    /// As Kafka takes it.
    pub legal: String,
}

/// A topic's name that Kafka would refuse, whatever its characters.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the topic name {name} has {length} characters; Kafka takes at most {TOPIC_LENGTH_MAX}")]
pub struct TopicTooLong {
    /// The name, with forbidden characters replaced.
    pub name: String,
    /// Its length in characters.
    pub length: usize,
}

impl TopicTemplate {
    /// What `hub.topic` is by default.
    pub const DEFAULT: &'static str = "{source}.{schema}.{table}";

    /// Reads a template with the placeholders `{source} {schema} {table} {aggregate_type}`.
    ///
    /// # Errors
    /// A [`TemplateError`] for an empty text, an unknown placeholder or a lonely brace.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let known = [
            ("source", TopicField::Source),
            ("schema", TopicField::Schema),
            ("table", TopicField::Table),
            ("aggregate_type", TopicField::AggregateType),
        ];
        parse(text, &known).map(TopicTemplate)
    }

    /// The topic of one table.
    ///
    /// # Errors
    /// [`TopicTooLong`]; the remedy is a shorter template, or a rule's `aggregate_type` in it.
    pub fn render(&self, names: &TopicNames<'_>) -> Result<Topic, TopicTooLong> {
        let raw = render(&self.0, |field| match field {
            TopicField::Source => names.source,
            TopicField::Schema => names.schema,
            TopicField::Table => names.table,
            TopicField::AggregateType => names.aggregate_type,
        });
        Topic::legal(raw)
    }

    /// Whether `topic`, as Kafka has it, can be a topic of this template and this source, whatever the
    /// table.
    pub fn can_be(&self, source: &str, topic: &str) -> bool {
        let legal = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '_' };
        // What stands before, between and after the fields that depend on the table.
        let mut pieces = vec![String::new()];
        for piece in &self.0 {
            let text = match piece {
                Piece::Text(text) => text.as_str(),
                Piece::Field(TopicField::Source) => source,
                Piece::Field(_) => {
                    pieces.push(String::new());
                    continue;
                }
            };
            pieces.last_mut().expect("there is one from the start").extend(text.chars().map(legal));
        }
        match pieces.as_slice() {
            [whole] => whole == topic,
            _ => super::name::pieces_match(&pieces, topic),
        }
    }

    /// Whether topics of another source have other names.
    pub fn names_source(&self) -> bool {
        self.0.iter().any(|piece| matches!(piece, Piece::Field(TopicField::Source)))
    }

    /// What stands for the template's placeholders, in their order. Two tables share a topic on purpose when
    /// these are equal; equal names alone can be an accident (`a.b` + `c`, `a` + `b.c`).
    pub fn values(&self, names: &TopicNames<'_>) -> Vec<String> {
        let value = |piece: &Piece<TopicField>| match piece {
            Piece::Text(_) => None,
            Piece::Field(TopicField::Source) => Some(names.source.to_owned()),
            Piece::Field(TopicField::Schema) => Some(names.schema.to_owned()),
            Piece::Field(TopicField::Table) => Some(names.table.to_owned()),
            Piece::Field(TopicField::AggregateType) => Some(names.aggregate_type.to_owned()),
        };
        self.0.iter().filter_map(value).collect()
    }
}

impl Default for TopicTemplate {
    fn default() -> Self {
        Self::parse(Self::DEFAULT).expect("the default template has known placeholders only")
    }
}

impl Topic {
    /// Makes any name one that Kafka takes. For topics of our own too, such as the checkpoint's.
    ///
    /// # Errors
    /// [`TopicTooLong`]: cutting a name short could make it another topic's.
    pub fn legal(raw: String) -> Result<Topic, TopicTooLong> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let mut legal: String = raw.chars().map(|c| if allowed(c) { c } else { '_' }).collect();
        match legal.as_str() {
            "" | "." => legal = "_".to_owned(),
            ".." => legal = "__".to_owned(),
            _ => {}
        }
        // Only ASCII is left, so that bytes are characters.
        if legal.len() > TOPIC_LENGTH_MAX {
            return Err(TopicTooLong { length: legal.len(), name: legal });
        }
        Ok(Topic { raw, legal })
    }

    /// Equal for two topics that cannot both exist: Kafka refuses a topic whose name differs from another's
    /// only in `.` and `_`, since its metrics cannot tell them apart.
    pub fn collision_key(&self) -> String {
        self.legal.replace('.', "_")
    }
}

/// Names the type of an event: of one table and one operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventTypeTemplate(Vec<Piece<TypeField>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TypeField {
    Schema,
    Table,
    AggregateType,
    Op,
    OpCapital,
}

/// What an event type's template may name, besides the operation.
#[derive(Clone, Copy, Debug)]
pub struct EventTypeNames<'a> {
    /// The table's schema.
    pub schema: &'a str,
    /// The table's name.
    pub table: &'a str,
    /// The rule's `aggregate_type`, by default the table's name.
    pub aggregate_type: &'a str,
}

/// The operation's word in an event's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OpWord {
    /// A row was inserted.
    Inserted,
    /// A row was updated.
    Updated,
    /// A row was deleted.
    Deleted,
    /// The table was truncated.
    Truncated,
    /// A row of the snapshot.
    Read,
}

impl OpWord {
    /// All of them.
    pub const ALL: [OpWord; 5] =
        [OpWord::Inserted, OpWord::Updated, OpWord::Deleted, OpWord::Truncated, OpWord::Read];

    /// `{op}`: `inserted`
    pub const fn lower(self) -> &'static str {
        match self {
            OpWord::Inserted => "inserted",
            OpWord::Updated => "updated",
            OpWord::Deleted => "deleted",
            OpWord::Truncated => "truncated",
            OpWord::Read => "read",
        }
    }

    /// `{Op}`: `Inserted`
    pub const fn capital(self) -> &'static str {
        match self {
            OpWord::Inserted => "Inserted",
            OpWord::Updated => "Updated",
            OpWord::Deleted => "Deleted",
            OpWord::Truncated => "Truncated",
            OpWord::Read => "Read",
        }
    }
}

impl EventTypeTemplate {
    /// What a rule's `event_type` is by default: `orders.updated`.
    pub const DEFAULT: &'static str = "{table}.{op}";

    /// Reads a template with the placeholders `{schema} {table} {aggregate_type} {op} {Op}`.
    ///
    /// # Errors
    /// A [`TemplateError`] for an empty text, an unknown placeholder or a lonely brace.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let known = [
            ("table", TypeField::Table),
            ("schema", TypeField::Schema),
            ("aggregate_type", TypeField::AggregateType),
            ("op", TypeField::Op),
            ("Op", TypeField::OpCapital),
        ];
        parse(text, &known).map(EventTypeTemplate)
    }

    /// The type of the events of one table and one operation.
    pub fn render(&self, names: &EventTypeNames<'_>, op: OpWord) -> String {
        render(&self.0, |field| match field {
            TypeField::Schema => names.schema,
            TypeField::Table => names.table,
            TypeField::AggregateType => names.aggregate_type,
            TypeField::Op => op.lower(),
            TypeField::OpCapital => op.capital(),
        })
    }
}

impl Default for EventTypeTemplate {
    fn default() -> Self {
        Self::parse(Self::DEFAULT).expect("the default template has known placeholders only")
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece<F> {
    Text(String),
    Field(F),
}

fn render<'a, F: Copy>(pieces: &'a [Piece<F>], value: impl Fn(F) -> &'a str) -> String {
    pieces
        .iter()
        .map(|piece| match piece {
            Piece::Text(text) => text.as_str(),
            Piece::Field(field) => value(*field),
        })
        .collect()
}

fn parse<F: Copy>(text: &str, known: &[(&str, F)]) -> Result<Vec<Piece<F>>, TemplateError> {
    if text.is_empty() {
        return Err(TemplateError::Empty);
    }
    let mut pieces = Vec::new();
    let mut literal = String::new();
    let mut rest = text;
    while let Some((before, brace, after)) = split_at_brace(rest) {
        literal.push_str(before);
        if let Some(after) = after.strip_prefix(brace) {
            literal.push(brace);
            rest = after;
            continue;
        }
        let (name, after) = match brace {
            '{' => after.split_once('}').ok_or(TemplateError::Brace('{'))?,
            _ => return Err(TemplateError::Brace('}')),
        };
        if !literal.is_empty() {
            pieces.push(Piece::Text(std::mem::take(&mut literal)));
        }
        pieces.push(Piece::Field(find(name, known)?));
        rest = after;
    }
    literal.push_str(rest);
    if !literal.is_empty() {
        pieces.push(Piece::Text(literal));
    }
    Ok(pieces)
}

fn split_at_brace(text: &str) -> Option<(&str, char, &str)> {
    let (before, from) = text.split_at(text.find(['{', '}'])?);
    let mut after = from.chars();
    let brace = after.next()?;
    Some((before, brace, after.as_str()))
}

fn find<F: Copy>(name: &str, known: &[(&str, F)]) -> Result<F, TemplateError> {
    known.iter().find(|(word, _)| *word == name).map(|(_, field)| *field).ok_or_else(|| {
        let words: Vec<String> = known.iter().map(|(word, _)| format!("{{{word}}}")).collect();
        TemplateError::Unknown { name: name.to_owned(), known: words.join(" ") }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn topic(template: &str, schema: &str, table: &str) -> Result<Topic, TopicTooLong> {
        let names = TopicNames { source: "shop", schema, table, aggregate_type: "Order" };
        TopicTemplate::parse(template).expect(template).render(&names)
    }

    fn event_type(template: &str, op: OpWord) -> String {
        let names = EventTypeNames { schema: "public", table: "orders", aggregate_type: "Order" };
        EventTypeTemplate::parse(template).expect(template).render(&names, op)
    }

    #[test]
    fn topics_are_named_after_their_tables() {
        let default = topic(TopicTemplate::DEFAULT, "public", "orders").unwrap();
        assert_eq!(
            (default.raw.as_str(), default.legal.as_str()),
            ("shop.public.orders", "shop.public.orders")
        );
        assert_eq!(topic("events-{aggregate_type}", "public", "orders").unwrap().legal, "events-Order");
        assert_eq!(topic("all", "public", "orders").unwrap().legal, "all");
        assert_eq!(topic("{{{table}}}", "public", "orders").unwrap().raw, "{orders}");
        assert_eq!(TopicTemplate::default(), TopicTemplate::parse(TopicTemplate::DEFAULT).unwrap());
    }

    #[test]
    fn knows_its_own_topics() {
        let can_be = |template: &str, source: &str, topic: &str| {
            TopicTemplate::parse(template).expect(template).can_be(source, topic)
        };
        assert!(can_be(TopicTemplate::DEFAULT, "shop", "shop.public.orders"));
        assert!(can_be(TopicTemplate::DEFAULT, "my shop", "my_shop.public.orders"));
        assert!(!can_be(TopicTemplate::DEFAULT, "shop", "shop2.public.orders"));
        assert!(!can_be(TopicTemplate::DEFAULT, "shop", "shop.orders"));
        assert!(can_be("events-{table}", "shop", "events-orders"));
        assert!(can_be("all", "shop", "all"));
        assert!(!can_be("all", "shop", "all2"));
    }

    #[test]
    fn what_kafka_forbids_becomes_an_underscore() {
        let odd = topic(TopicTemplate::DEFAULT, "my schema", "größe\"x\"").unwrap();
        assert_eq!(odd.raw, "shop.my schema.größe\"x\"");
        assert_eq!(odd.legal, "shop.my_schema.gr__e_x_");
        assert_eq!(topic("{table}", "s", ".").unwrap().legal, "_");
        assert_eq!(topic("{table}", "s", "..").unwrap().legal, "__");
        assert_eq!(Topic::legal(String::new()).unwrap().legal, "_");
        assert_eq!(
            topic("{schema}.{table}", "a", "b").unwrap().collision_key(),
            topic("{schema}_{table}", "a", "b").unwrap().collision_key(),
        );
    }

    #[test]
    fn a_topic_is_never_cut_short() {
        assert_eq!(topic("{table}", "s", &"t".repeat(249)).unwrap().legal.len(), 249);
        let error = topic("{table}", "s", &"t".repeat(250)).unwrap_err();
        assert_eq!(error.length, 250);
        assert_eq!(topic("{table}", "s", &"ö".repeat(249)).unwrap().legal, "_".repeat(249));
    }

    #[test]
    fn event_types_carry_the_operation() {
        assert_eq!(event_type(EventTypeTemplate::DEFAULT, OpWord::Updated), "orders.updated");
        assert_eq!(event_type("Order{Op}", OpWord::Inserted), "OrderInserted");
        assert_eq!(event_type("{schema}/{aggregate_type}:{op}", OpWord::Read), "public/Order:read");
        let words: Vec<_> = OpWord::ALL.iter().map(|op| (op.lower(), op.capital())).collect();
        for (lower, capital) in words {
            assert_eq!(lower, capital.to_lowercase());
        }
    }

    #[test]
    fn faults_of_templates_name_what_is_known() {
        let error = TopicTemplate::parse("{source}.{tabel}").unwrap_err();
        assert_eq!(error.to_string(), "unknown placeholder {tabel}");
        assert_eq!(error.remedy(), "known are {source} {schema} {table} {aggregate_type}");
        let error = EventTypeTemplate::parse("{source}").unwrap_err();
        assert_eq!(error.remedy(), "known are {table} {schema} {aggregate_type} {op} {Op}");
        assert_eq!(TopicTemplate::parse(""), Err(TemplateError::Empty));
        assert_eq!(TopicTemplate::parse("{table"), Err(TemplateError::Brace('{')));
        assert_eq!(TopicTemplate::parse("table}"), Err(TemplateError::Brace('}')));
        assert_eq!(TopicTemplate::parse("table}").unwrap_err().remedy(), "write }} for the character itself");
    }

    proptest! {
        #[test]
        fn every_topic_is_legal(schema in "\\PC{0,20}", table in ".{0,20}") {
            let legal = topic(TopicTemplate::DEFAULT, &schema, &table).unwrap().legal;
            prop_assert!(legal.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)), "{}", legal);
        }

        #[test]
        fn text_without_braces_renders_as_it_stands(text in "[^{}]{1,30}") {
            prop_assert_eq!(event_type(&text, OpWord::Read), text);
        }

        #[test]
        fn no_text_panics(text in "[{}a-z]{0,20}") {
            let _ = TopicTemplate::parse(&text);
        }
    }
}
