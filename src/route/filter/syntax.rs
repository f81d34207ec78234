//! The text of a `where` into a tree, and what the tree may not hold.
//!
//! In: what the user typed. Out: one expression, the names of the columns in it, and whether its words are
//! such that PostgreSQL without doubt reads them as the parser here does; or a [`FilterError`]. Always: no
//! sub-query, aggregate, window function, parameter, system column or function known to be volatile comes
//! through. Where two lexers may differ (operators written without spaces, escapes in strings, numbers of
//! later versions), the doubt is said, and the server evaluates. Manual: "Lexical Structure".

use std::ops::ControlFlow;

use sqlparser::ast::{
    Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, Ident, Query, Value, ValueWithSpan,
    Visit, Visitor,
};
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::keywords::Keyword;
use sqlparser::parser::{Parser, ParserError};
use sqlparser::tokenizer::{Token, Tokenizer, Whitespace};

use super::error::FilterError;
use super::facts::TableFacts;
use crate::wal::pgoutput::Relation;

/// Bytes of an expression: more than anybody writes, and an end for what is generated.
const TEXT_BYTES_MAX: usize = 256 * 1024;

/// Operators and parentheses of an expression. A chain of them is a tree as deep as it is long, and the
/// stack is finite; lists are not counted.
const OPERATORS_MAX: usize = 600;

/// An expression that was parsed.
pub(super) struct Parsed {
    pub(super) expr: Expr,
    /// Why the words alone leave doubt about their meaning.
    pub(super) doubt: Option<String>,
    /// Whether every BETWEEN is BETWEEN SYMMETRIC, or none is; `None` where they are mixed.
    pub(super) is_symmetric: Option<bool>,
    /// A comment to the end of the line, which would swallow what is written behind the expression.
    pub(super) has_line_comment: bool,
}

/// Parses exactly one expression.
pub(super) fn parse(text: &str) -> Result<Parsed, FilterError> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(FilterError::TooLarge { what: "long" });
    }
    if text.contains('\0') {
        return Err(FilterError::Syntax { message: "it has a NUL character".to_owned() });
    }
    let dialect = PostgreSqlDialect {};
    let mut tokens = Tokenizer::new(&dialect, text)
        .tokenize()
        .map_err(|error| FilterError::Syntax { message: error.to_string() })?;
    if tokens.iter().filter(|token| nests(token)).count() > OPERATORS_MAX {
        return Err(FilterError::TooLarge { what: "long" });
    }
    let has_line_comment =
        tokens.iter().any(|token| matches!(token, Token::Whitespace(Whitespace::SingleLineComment { .. })));
    // What is space elsewhere is part of a name in PostgreSQL.
    let has_odd_space =
        text.contains(|character: char| character.is_whitespace() && !" \t\n\r\u{c}".contains(character));
    let mut doubt = if has_odd_space { Some("an unusual space".to_owned()) } else { token_doubt(&tokens) };
    let is_symmetric = take_symmetric(&mut tokens);
    if is_symmetric.is_none() {
        doubt = doubt.or_else(|| Some("BETWEEN with and without SYMMETRIC".to_owned()));
    }
    let mut parser = Parser::new(&dialect).with_tokens(tokens);
    let expr = parser.parse_expr().map_err(|error| match error {
        ParserError::RecursionLimitExceeded => FilterError::TooLarge { what: "deep" },
        ParserError::TokenizerError(message) | ParserError::ParserError(message) => {
            FilterError::Syntax { message }
        }
    })?;
    match parser.peek_token().token {
        Token::EOF => Ok(Parsed { expr, doubt, is_symmetric, has_line_comment }),
        found => Err(FilterError::Several { found: found.to_string() }),
    }
}

fn nests(token: &Token) -> bool {
    match token {
        Token::Whitespace(_) | Token::Comma | Token::Number(..) | Token::SingleQuotedString(_) => false,
        Token::Word(word) => word.keyword != Keyword::NoKeyword,
        _ => true,
    }
}

/// The parser does not know SYMMETRIC: it is taken out where it stands behind BETWEEN.
fn take_symmetric(tokens: &mut Vec<Token>) -> Option<bool> {
    let (mut symmetric, mut plain) = (0_usize, 0_usize);
    let mut after_between = false;
    tokens.retain(|token| match token {
        Token::Whitespace(_) => true,
        Token::Word(word) if after_between && word.quote_style.is_none() => {
            after_between = false;
            let is_symmetric = word.value.eq_ignore_ascii_case("symmetric");
            if is_symmetric {
                symmetric += 1;
            } else {
                plain += 1;
            }
            !is_symmetric && !word.value.eq_ignore_ascii_case("asymmetric")
        }
        Token::Word(word) if word.keyword == Keyword::BETWEEN => {
            after_between = true;
            true
        }
        _ => {
            plain += usize::from(after_between);
            after_between = false;
            true
        }
    });
    match (symmetric, plain) {
        (0, _) => Some(false),
        (_, 0) => Some(true),
        _ => None,
    }
}

/// The first token, or pair of tokens, that PostgreSQL may read in another way.
fn token_doubt(tokens: &[Token]) -> Option<String> {
    let is_known = |token: &Token| {
        is_operator(token)
            || matches!(
                token,
                Token::Word(_)
                    | Token::Number(_, false)
                    | Token::SingleQuotedString(_)
                    | Token::Comma
                    | Token::Whitespace(_)
                    | Token::LParen
                    | Token::RParen
                    | Token::LBracket
                    | Token::RBracket
                    | Token::Period
                    | Token::DoubleColon
            )
    };
    if let Some(token) = tokens.iter().find(|token| !is_known(token)) {
        return Some(format!("{token}"));
    }
    for pair in tokens.windows(2) {
        let [first, second] = pair else { continue };
        let is_doubtful = match (first, second) {
            // PostgreSQL reads `%-` as one operator, but splits `*-`: a run may end with a sign only behind
            // one of the characters of arithmetic and comparison.
            (first, Token::Minus | Token::Plus) if is_operator(first) => {
                matches!(first, Token::Mod | Token::StringConcat | Token::Neq)
            }
            (first, second) if is_operator(first) && is_operator(second) => true,
            // `10a` is two tokens to some versions and an error to others.
            (Token::Number(..), Token::Word(_) | Token::Number(..)) => true,
            _ => false,
        };
        if is_doubtful {
            return Some(format!("{first}{second}"));
        }
    }
    let words = tokens.iter().filter(|token| !matches!(token, Token::Whitespace(_)));
    let mut last_was_string = false;
    for token in words {
        let is_string = matches!(token, Token::SingleQuotedString(_));
        if is_string && last_was_string {
            return Some("a string in two parts".to_owned());
        }
        last_was_string = is_string;
    }
    None
}

fn is_operator(token: &Token) -> bool {
    matches!(
        token,
        Token::Eq
            | Token::Neq
            | Token::Lt
            | Token::Gt
            | Token::LtEq
            | Token::GtEq
            | Token::Plus
            | Token::Minus
            | Token::Mul
            | Token::Div
            | Token::Mod
            | Token::StringConcat
            | Token::Arrow
            | Token::LongArrow
    )
}

/// The name as PostgreSQL reads it: in lower case unless it is quoted.
pub(super) fn folded(ident: &Ident) -> String {
    match ident.quote_style {
        Some(_) => ident.value.clone(),
        None => ident.value.to_ascii_lowercase(),
    }
}

/// Indexes of the relation's columns that the expression uses, sorted; or the first thing that may not
/// stand in it.
pub(super) fn survey(
    expr: &Expr,
    relation: &Relation,
    facts: &TableFacts,
) -> Result<Vec<usize>, FilterError> {
    let mut survey = Survey { relation, facts, columns: Vec::new() };
    if let ControlFlow::Break(error) = expr.visit(&mut survey) {
        return Err(*error);
    }
    survey.columns.sort_unstable();
    survey.columns.dedup();
    Ok(survey.columns)
}

struct Survey<'a> {
    relation: &'a Relation,
    facts: &'a TableFacts,
    columns: Vec<usize>,
}

type Step = ControlFlow<Box<FilterError>>;

fn refuse(error: FilterError) -> Step {
    ControlFlow::Break(Box::new(error))
}

fn forbid(what: impl Into<String>) -> Step {
    refuse(FilterError::Forbidden { what: what.into() })
}

impl Visitor for Survey<'_> {
    type Break = Box<FilterError>;

    fn pre_visit_query(&mut self, _: &Query) -> Step {
        forbid("a sub-query")
    }

    fn pre_visit_value(&mut self, value: &ValueWithSpan) -> Step {
        match &value.value {
            Value::Placeholder(name) => forbid(format!("the parameter {name}")),
            _ => Step::Continue(()),
        }
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> Step {
        match expr {
            Expr::Identifier(ident) => {
                let name = folded(ident);
                if ident.quote_style.is_none() && CURRENT.contains(&name.as_str()) {
                    return refuse(FilterError::Volatile { name });
                }
                self.column(&name)
            }
            Expr::CompoundIdentifier(parts) => match parts.as_slice() {
                [table, column] if folded(table) == self.relation.name => self.column(&folded(column)),
                [_, _] => {
                    let name = parts.iter().map(folded).collect::<Vec<_>>().join(".");
                    refuse(FilterError::UnknownColumn { similar: self.similar(&name), name })
                }
                _ => {
                    let name = parts.iter().map(ToString::to_string).collect::<Vec<_>>().join(".");
                    refuse(FilterError::Qualified { name })
                }
            },
            Expr::Function(function) => check_function(function),
            Expr::Wildcard(_) | Expr::QualifiedWildcard(..) => forbid("*"),
            Expr::GroupingSets(_) | Expr::Cube(_) | Expr::Rollup(_) => forbid("GROUPING"),
            _ => Step::Continue(()),
        }
    }
}

impl Survey<'_> {
    fn column(&mut self, name: &str) -> Step {
        if let Some(at) = self.relation.columns.iter().position(|column| column.name == name) {
            self.columns.push(at);
            return Step::Continue(());
        }
        let name = name.to_owned();
        if self.facts.generated.contains(&name) {
            return refuse(FilterError::Generated { name });
        }
        if SYSTEM_COLUMNS.contains(&name.as_str()) {
            return forbid(format!("the system column {name}"));
        }
        refuse(FilterError::UnknownColumn { similar: self.similar(&name), name })
    }

    fn similar(&self, name: &str) -> Option<String> {
        let names = self.relation.columns.iter().map(|column| &column.name);
        let near = names.map(|known| (strsim::jaro_winkler(known, name), known));
        let best = near.max_by(|left, right| left.0.total_cmp(&right.0))?;
        (best.0 > 0.8).then(|| best.1.clone())
    }
}

/// The first string that a date or time would read off the clock, such as `'today'`, if the expression has
/// to do with dates at all. PostgreSQL reads such a constant once, so that its own check finds it immutable.
pub(super) fn moving_literal(expr: &Expr, has_moments: bool) -> Option<String> {
    let mut search = Moving { found: None, has_moments };
    let _ = expr.visit(&mut search);
    search.found.filter(|_| search.has_moments)
}

struct Moving {
    found: Option<String>,
    has_moments: bool,
}

impl Visitor for Moving {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        self.has_moments |= matches!(expr, Expr::Cast { .. } | Expr::TypedString(_));
        ControlFlow::Continue(())
    }

    fn pre_visit_value(&mut self, value: &ValueWithSpan) -> ControlFlow<()> {
        if let Some(text) = value.value.clone().into_string() {
            let mut words = text.split(|character: char| !character.is_ascii_alphanumeric());
            if words.any(|word| MOVING.iter().any(|moving| word.eq_ignore_ascii_case(moving))) {
                self.found = Some(format!("'{text}'"));
            }
        }
        ControlFlow::Continue(())
    }
}

/// "Date/Time Special Values" that move.
const MOVING: &[&str] = &["now", "today", "tomorrow", "yesterday"];

fn check_function(function: &Function) -> Step {
    let written = function.name.to_string();
    let Some(name) = function.name.0.last().and_then(|part| part.as_ident()).map(folded) else {
        return Step::Continue(());
    };
    if function.over.is_some() {
        return forbid(format!("the window function {written}"));
    }
    let is_aggregate = AGGREGATES.contains(&name.as_str());
    if is_aggregate || function.filter.is_some() || !function.within_group.is_empty() {
        return forbid(format!("the aggregate {written}"));
    }
    if VOLATILE.contains(&name.as_str()) || CURRENT.contains(&name.as_str()) {
        return refuse(FilterError::Volatile { name: written });
    }
    let FunctionArguments::List(list) = &function.args else { return Step::Continue(()) };
    let is_wildcard =
        list.args.iter().any(|argument| {
            let (FunctionArg::Named { arg, .. }
            | FunctionArg::ExprNamed { arg, .. }
            | FunctionArg::Unnamed(arg)) = argument;
            !matches!(arg, FunctionArgExpr::Expr(_))
        });
    if is_wildcard { forbid("*") } else { Step::Continue(()) }
}

const SYSTEM_COLUMNS: &[&str] = &["ctid", "xmin", "xmax", "cmin", "cmax", "tableoid"];

/// Keywords that are functions of the session or of the clock.
const CURRENT: &[&str] = &[
    "current_catalog",
    "current_date",
    "current_role",
    "current_schema",
    "current_time",
    "current_timestamp",
    "current_user",
    "localtime",
    "localtimestamp",
    "session_user",
    "system_user",
    "user",
];

/// Not all that are volatile: the server is asked too. These get a better message.
const VOLATILE: &[&str] = &[
    "clock_timestamp",
    "currval",
    "gen_random_uuid",
    "lastval",
    "nextval",
    "now",
    "pg_advisory_lock",
    "pg_advisory_xact_lock",
    "pg_backend_pid",
    "pg_current_wal_lsn",
    "pg_sleep",
    "random",
    "set_config",
    "setseed",
    "setval",
    "statement_timestamp",
    "timeofday",
    "transaction_timestamp",
    "txid_current",
    "uuid_generate_v1",
    "uuid_generate_v4",
    "uuidv4",
    "uuidv7",
];

const AGGREGATES: &[&str] = &[
    "array_agg",
    "avg",
    "bit_and",
    "bit_or",
    "bit_xor",
    "bool_and",
    "bool_or",
    "count",
    "every",
    "json_agg",
    "json_object_agg",
    "jsonb_agg",
    "jsonb_object_agg",
    "max",
    "min",
    "range_agg",
    "string_agg",
    "sum",
    "xmlagg",
];
