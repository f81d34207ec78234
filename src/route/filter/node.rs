//! A compiled expression and its evaluation.
//!
//! In: the cells of a row. Out: a value or NULL; or why there is none: it depends on a cell that was not
//! sent, or PostgreSQL would raise an error. Always: AND, OR, CASE and COALESCE go from left to right and
//! stop where PostgreSQL stops, so that `x <> 0 AND 1 / x > 0` does not divide by 0; every other operator
//! evaluates both sides first, so that an error there shows even beside a NULL. Comparing integers, text
//! and numerics allocates nothing. Manual: "Logical Operators", "Expression Evaluation Rules".

use std::borrow::Cow;
use std::cmp::Ordering;

use super::arithmetic::{self, ArithOp, Cast, Width};
use super::array::ArrayValue;
use super::datum::{Datum, Order};
use super::error::EvalError;
use super::json;
use super::like::Pattern;
use super::types::Type;
use crate::wal::pgoutput::Value;

/// Lists at least this long are searched, not gone through.
const SET_LEN_MIN: usize = 9;

/// A comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CompareOp {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
}

impl CompareOp {
    fn holds(self, ordering: Ordering) -> bool {
        match self {
            CompareOp::Equal => ordering.is_eq(),
            CompareOp::NotEqual => ordering.is_ne(),
            CompareOp::Less => ordering.is_lt(),
            CompareOp::LessEqual => ordering.is_le(),
            CompareOp::Greater => ordering.is_gt(),
            CompareOp::GreaterEqual => ordering.is_ge(),
        }
    }

    /// Whether it asks for equality only.
    pub(super) fn is_equality(self) -> bool {
        matches!(self, CompareOp::Equal | CompareOp::NotEqual)
    }
}

/// An expression whose types are settled.
#[derive(Clone, Debug)]
pub(super) enum Node {
    Const(Option<Datum<'static>>),
    Column {
        at: usize,
        ty: Type,
    },
    And(Vec<Node>),
    Or(Vec<Node>),
    Not(Box<Node>),
    Compare {
        op: CompareOp,
        by: Order,
        sides: Box<[Node; 2]>,
    },
    /// IS NOT DISTINCT FROM.
    Same {
        by: Order,
        sides: Box<[Node; 2]>,
    },
    IsNull(Box<Node>),
    /// IS TRUE, IS FALSE.
    Is {
        node: Box<Node>,
        value: bool,
    },
    /// `op ANY (array)`, `op ALL (array)`; IN and NOT IN.
    Any {
        op: CompareOp,
        by: Order,
        is_all: bool,
        sides: Box<[Node; 2]>,
    },
    /// IN and NOT IN of many constants: a set in ascending order.
    Among {
        node: Box<Node>,
        by: Order,
        set: Vec<Datum<'static>>,
        has_null: bool,
        is_negated: bool,
    },
    Array(Vec<Node>),
    Arith {
        op: ArithOp,
        width: Width,
        sides: Box<[Node; 2]>,
    },
    Negate {
        width: Width,
        node: Box<Node>,
    },
    Abs {
        width: Width,
        node: Box<Node>,
    },
    Cast {
        cast: Cast,
        node: Box<Node>,
    },
    Concat(Box<[Node; 2]>),
    Length(Box<Node>),
    Like {
        pattern: Pattern,
        node: Box<Node>,
    },
    /// `->` and `->>`.
    JsonGet {
        is_binary: bool,
        as_text: bool,
        sides: Box<[Node; 2]>,
    },
    Case {
        arms: Vec<(Node, Node)>,
        otherwise: Box<Node>,
    },
    Coalesce(Vec<Node>),
    NullIf {
        by: Order,
        sides: Box<[Node; 2]>,
    },
}

/// A row to evaluate on.
#[derive(Clone, Copy)]
pub(super) struct Row<'c, 'a> {
    pub values: &'c [Value<'a>],
    /// Of an old row more is missing than TOASTed values: what was not sent may be NULL.
    pub is_old: bool,
}

/// Why there is no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// It depends on this column, which was not sent.
    Unknown(usize),
    /// PostgreSQL would raise this.
    Error(EvalError),
}

impl From<EvalError> for Stop {
    fn from(error: EvalError) -> Self {
        Stop::Error(error)
    }
}

type Outcome<'a> = Result<Option<Datum<'a>>, Stop>;

impl Node {
    /// Whether it is made of comparisons alone, which no value makes fail.
    pub(super) fn cannot_fail(&self) -> bool {
        match self {
            Node::Const(_) | Node::Column { .. } => true,
            Node::And(nodes) | Node::Or(nodes) | Node::Array(nodes) => nodes.iter().all(Node::cannot_fail),
            Node::Not(node) | Node::IsNull(node) | Node::Is { node, .. } | Node::Among { node, .. } => {
                node.cannot_fail()
            }
            Node::Compare { sides, .. } | Node::Same { sides, .. } | Node::Any { sides, .. } => {
                sides.iter().all(Node::cannot_fail)
            }
            Node::Arith { .. }
            | Node::Negate { .. }
            | Node::Abs { .. }
            | Node::Cast { .. }
            | Node::Concat(_)
            | Node::Length(_)
            | Node::Like { .. }
            | Node::JsonGet { .. }
            | Node::Case { .. }
            | Node::Coalesce(_)
            | Node::NullIf { .. } => false,
        }
    }

    /// Evaluates it on a row.
    pub(super) fn eval<'a>(&'a self, cells: Row<'_, 'a>) -> Outcome<'a> {
        match self {
            Node::Const(value) => Ok(value.as_ref().map(Datum::borrow)),
            Node::Column { at, ty } => match cells.values.get(*at) {
                Some(Value::Null) => Ok(None),
                Some(Value::Text(text)) => Ok(Some(Datum::read(ty, text)?)),
                Some(Value::Unchanged) => Err(Stop::Unknown(*at)),
                Some(Value::Binary(_)) => Err(EvalError::Form { type_name: ty.name() }.into()),
                None => Err(EvalError::MissingCell { index: *at }.into()),
            },
            Node::And(nodes) => junction(nodes, cells, false),
            Node::Or(nodes) => junction(nodes, cells, true),
            Node::Not(node) => Ok(truth(node, cells)?.map(|value| Datum::Bool(!value))),
            Node::Compare { op, by, sides } => {
                let Some((left, right)) = both(sides, cells)? else { return Ok(None) };
                Ok(Some(Datum::Bool(op.holds(by.compare(&left, &right)?))))
            }
            Node::Same { by, sides } => {
                let [left, right] = sides.as_ref();
                let same = match (left.eval(cells)?, right.eval(cells)?) {
                    (Some(left), Some(right)) => by.compare(&left, &right)?.is_eq(),
                    (None, None) => true,
                    _ => false,
                };
                Ok(Some(Datum::Bool(same)))
            }
            Node::IsNull(node) => {
                if let Node::Column { at, .. } = node.as_ref() {
                    let is_known = match cells.values.get(*at) {
                        Some(Value::Text(_)) => true,
                        // What is TOASTed is not NULL, whatever it is.
                        Some(Value::Unchanged) => !cells.is_old,
                        _ => false,
                    };
                    if is_known {
                        return Ok(Some(Datum::Bool(false)));
                    }
                }
                Ok(Some(Datum::Bool(node.eval(cells)?.is_none())))
            }
            Node::Is { node, value } => Ok(Some(Datum::Bool(truth(node, cells)? == Some(*value)))),
            Node::Any { op, by, is_all, sides } => any(*op, by, *is_all, sides, cells),
            Node::Among { node, by, set, has_null, is_negated } => {
                let Some(value) = node.eval(cells)? else { return Ok(None) };
                let is_among = among(by, set, &value)?;
                Ok((is_among || !has_null).then_some(Datum::Bool(is_among != *is_negated)))
            }
            Node::Array(nodes) => {
                let elements = nodes.iter().map(|node| node.eval(cells)).collect::<Result<_, _>>()?;
                Ok(Some(Datum::Array(ArrayValue::list(elements))))
            }
            Node::Arith { op, width, sides } => {
                let Some((left, right)) = both(sides, cells)? else { return Ok(None) };
                Ok(Some(arithmetic::compute(*op, *width, left, right)?))
            }
            Node::Negate { width, node } => strict(node, cells, |value| arithmetic::negate(*width, value)),
            Node::Abs { width, node } => strict(node, cells, |value| arithmetic::abs(*width, value)),
            Node::Cast { cast, node } => strict(node, cells, |value| cast.apply(value)),
            Node::Concat(sides) => {
                let Some((Datum::Text(left), Datum::Text(right))) = both(sides, cells)? else {
                    return Ok(None);
                };
                Ok(Some(Datum::Text(Cow::Owned([left.as_ref(), right.as_ref()].concat()))))
            }
            Node::Length(node) => strict(node, cells, |value| match value {
                Datum::Text(text) => {
                    let chars = text.iter().filter(|&&byte| byte & 0xc0 != 0x80).count();
                    i64::try_from(chars)
                        .map(Datum::Int)
                        .map_err(|_| EvalError::OutOfRange { type_name: "integer" })
                }
                _ => Err(EvalError::Form { type_name: "text" }),
            }),
            Node::Like { pattern, node } => strict(node, cells, |value| match value {
                Datum::Text(text) => Ok(Datum::Bool(pattern.matches(&text))),
                _ => Err(EvalError::Form { type_name: "text" }),
            }),
            Node::JsonGet { is_binary, as_text, sides } => {
                let Some((document, key)) = both(sides, cells)? else { return Ok(None) };
                Ok(json_get(document, &key, *is_binary, *as_text)?.map(Datum::Text))
            }
            Node::Case { arms, otherwise } => {
                for (condition, result) in arms {
                    if truth(condition, cells)? == Some(true) {
                        return result.eval(cells);
                    }
                }
                otherwise.eval(cells)
            }
            Node::Coalesce(nodes) => {
                for node in nodes {
                    if let Some(value) = node.eval(cells)? {
                        return Ok(Some(value));
                    }
                }
                Ok(None)
            }
            Node::NullIf { by, sides } => {
                let [left, right] = sides.as_ref();
                let (left, right) = (left.eval(cells)?, right.eval(cells)?);
                match (left, right) {
                    (Some(left), Some(right)) if by.compare(&left, &right)?.is_eq() => Ok(None),
                    (left, _) => Ok(left),
                }
            }
        }
    }

    /// What PostgreSQL's planner does before any row: an operator on constants alone has its value, unless
    /// that is an error; one with a NULL constant is NULL, whatever its other side would raise.
    pub(super) fn folded(self) -> Node {
        let this = match self {
            Node::Case { arms, otherwise } => folded_case(arms, *otherwise),
            Node::Coalesce(nodes) => folded_coalesce(nodes),
            other => other,
        };
        this.folded_operator().with_set()
    }

    fn folded_operator(self) -> Node {
        let (is_constant, has_null) = match &self {
            Node::Compare { sides, .. }
            | Node::Arith { sides, .. }
            | Node::JsonGet { sides, .. }
            | Node::Concat(sides) => {
                let [left, right] = sides.as_ref();
                (left.is_const() && right.is_const(), left.is_null_const() || right.is_null_const())
            }
            Node::Negate { node, .. }
            | Node::Abs { node, .. }
            | Node::Cast { node, .. }
            | Node::Length(node)
            | Node::Like { node, .. }
            | Node::Not(node) => (node.is_const(), node.is_null_const()),
            Node::Is { node, .. } | Node::IsNull(node) => (node.is_const(), false),
            Node::Same { sides, .. } | Node::NullIf { sides, .. } => {
                (sides.iter().all(Node::is_const), false)
            }
            Node::Any { sides, .. } => (sides.iter().all(Node::is_const), false),
            Node::Array(nodes) => (nodes.iter().all(Node::is_const), false),
            Node::And(nodes) if nodes.iter().any(|node| node.is_bool_const(false)) => {
                return Node::Const(Some(Datum::Bool(false)));
            }
            Node::Or(nodes) if nodes.iter().any(|node| node.is_bool_const(true)) => {
                return Node::Const(Some(Datum::Bool(true)));
            }
            Node::And(nodes) | Node::Or(nodes) => (nodes.iter().all(Node::is_const), false),
            Node::Const(_)
            | Node::Column { .. }
            | Node::Among { .. }
            | Node::Case { .. }
            | Node::Coalesce(_) => (false, false),
        };
        if has_null {
            return Node::Const(None);
        }
        let folded = if is_constant {
            self.eval(Row { values: &[], is_old: false }).map(|value| value.map(Datum::into_owned))
        } else {
            return self;
        };
        folded.map_or(self, Node::Const)
    }

    /// A long constant list of IN as an ordered set. Not where comparing can fail.
    fn with_set(self) -> Node {
        let Node::Any { op, by, is_all, sides } = self else { return self };
        let is_in = op == if is_all { CompareOp::NotEqual } else { CompareOp::Equal };
        let is_total = matches!(by, Order::Int | Order::Bytes | Order::Numeric | Order::Moment);
        match *sides {
            [left, Node::Const(Some(Datum::Array(array)))]
                if is_in && is_total && array.elements.len() >= SET_LEN_MIN && !left.is_const() =>
            {
                let has_null = array.elements.iter().any(Option::is_none);
                let mut set: Vec<_> = array.elements.into_iter().flatten().collect();
                set.sort_unstable_by(|left, right| by.compare(left, right).unwrap_or(Ordering::Equal));
                Node::Among { node: Box::new(left), by, set, has_null, is_negated: is_all }
            }
            [left, right] => Node::Any { op, by, is_all, sides: Box::new([left, right]) },
        }
    }

    /// How many nodes it has, up to a few more than `max`.
    pub(super) fn weight(&self, max: usize) -> usize {
        let sum = |nodes: &mut dyn Iterator<Item = &Node>| {
            let mut weight = 1;
            for node in nodes {
                if weight > max {
                    break;
                }
                weight += node.weight(max - weight.min(max));
            }
            weight
        };
        match self {
            Node::Const(_) | Node::Column { .. } => 1,
            Node::And(nodes) | Node::Or(nodes) | Node::Array(nodes) | Node::Coalesce(nodes) => {
                sum(&mut nodes.iter())
            }
            Node::Compare { sides, .. }
            | Node::Same { sides, .. }
            | Node::Any { sides, .. }
            | Node::Arith { sides, .. }
            | Node::Concat(sides)
            | Node::JsonGet { sides, .. }
            | Node::NullIf { sides, .. } => sum(&mut sides.iter()),
            Node::Not(node)
            | Node::IsNull(node)
            | Node::Is { node, .. }
            | Node::Among { node, .. }
            | Node::Negate { node, .. }
            | Node::Abs { node, .. }
            | Node::Cast { node, .. }
            | Node::Length(node)
            | Node::Like { node, .. } => sum(&mut std::iter::once(node.as_ref())),
            Node::Case { arms, otherwise } => {
                let arms = arms.iter().flat_map(|(condition, result)| [condition, result]);
                sum(&mut arms.chain(std::iter::once(otherwise.as_ref())))
            }
        }
    }

    fn is_const(&self) -> bool {
        matches!(self, Node::Const(_))
    }

    pub(super) fn is_null_const(&self) -> bool {
        matches!(self, Node::Const(None))
    }

    fn is_bool_const(&self, value: bool) -> bool {
        matches!(self, Node::Const(Some(Datum::Bool(held))) if *held == value)
    }
}

/// An arm whose condition is never true goes; one whose condition always is ends the CASE.
fn folded_case(arms: Vec<(Node, Node)>, mut otherwise: Node) -> Node {
    let mut kept = Vec::with_capacity(arms.len());
    for (condition, result) in arms {
        match condition {
            Node::Const(Some(Datum::Bool(true))) => {
                otherwise = result;
                break;
            }
            Node::Const(_) => {}
            condition => kept.push((condition, result)),
        }
    }
    if kept.is_empty() { otherwise } else { Node::Case { arms: kept, otherwise: Box::new(otherwise) } }
}

/// A NULL goes; another constant ends the COALESCE.
fn folded_coalesce(nodes: Vec<Node>) -> Node {
    let mut kept = Vec::with_capacity(nodes.len());
    for node in nodes {
        match node {
            Node::Const(None) => continue,
            Node::Const(Some(_)) if kept.is_empty() => return node,
            _ => {}
        }
        let is_last = node.is_const();
        kept.push(node);
        if is_last {
            break;
        }
    }
    if kept.is_empty() { Node::Const(None) } else { Node::Coalesce(kept) }
}

/// A condition: true, false or NULL.
pub(super) fn truth(node: &Node, cells: Row<'_, '_>) -> Result<Option<bool>, Stop> {
    match node.eval(cells)? {
        None => Ok(None),
        Some(Datum::Bool(value)) => Ok(Some(value)),
        Some(_) => Err(EvalError::Form { type_name: "boolean" }.into()),
    }
}

/// AND where `decides` is false, OR where it is true: one such value decides, else an unknown cell or a
/// NULL leaves it open.
fn junction<'a>(nodes: &[Node], cells: Row<'_, '_>, decides: bool) -> Outcome<'a> {
    let mut has_null = false;
    let mut unknown = None;
    for node in nodes {
        match (truth(node, cells), unknown) {
            (Ok(Some(value)), _) if value == decides => return Ok(Some(Datum::Bool(decides))),
            (Ok(Some(_)), _) => {}
            (Ok(None), _) => has_null = true,
            (Err(stop @ Stop::Unknown(_)), None) => unknown = Some(stop),
            (Err(Stop::Unknown(_)), Some(_)) => {}
            // PostgreSQL may never have come here: what is unknown may have decided.
            (Err(Stop::Error(_)), Some(unknown)) => return Err(unknown),
            (Err(error), None) => return Err(error),
        }
    }
    match unknown {
        Some(unknown) => Err(unknown),
        None if has_null => Ok(None),
        None => Ok(Some(Datum::Bool(!decides))),
    }
}

/// Both sides of a strict operator; none where one is NULL.
fn both<'a>(sides: &'a [Node; 2], cells: Row<'_, 'a>) -> Result<Option<(Datum<'a>, Datum<'a>)>, Stop> {
    let [left, right] = sides;
    let (left, right) = (left.eval(cells)?, right.eval(cells)?);
    Ok(left.zip(right))
}

fn strict<'a>(
    node: &'a Node,
    cells: Row<'_, 'a>,
    apply: impl FnOnce(Datum<'a>) -> Result<Datum<'a>, EvalError>,
) -> Outcome<'a> {
    match node.eval(cells)? {
        None => Ok(None),
        Some(value) => Ok(Some(apply(value)?)),
    }
}

/// "Row and Array Comparisons": an empty array decides even where the left side is NULL.
fn any<'a>(op: CompareOp, by: &Order, is_all: bool, sides: &'a [Node; 2], cells: Row<'_, 'a>) -> Outcome<'a> {
    let [left, array] = sides;
    let left = left.eval(cells)?;
    // The usual list is a constant, which is not copied.
    let evaluated;
    let array = match array {
        Node::Const(Some(Datum::Array(array))) => array,
        _ => {
            evaluated = array.eval(cells)?;
            match &evaluated {
                None => return Ok(None),
                Some(Datum::Array(array)) => array,
                Some(_) => return Err(EvalError::Form { type_name: "an array" }.into()),
            }
        }
    };
    if array.elements.is_empty() {
        return Ok(Some(Datum::Bool(is_all)));
    }
    let Some(left) = left else { return Ok(None) };
    let mut has_null = false;
    for element in &array.elements {
        match element {
            None => has_null = true,
            Some(element) if op.holds(by.compare(&left, element)?) != is_all => {
                return Ok(Some(Datum::Bool(!is_all)));
            }
            Some(_) => {}
        }
    }
    Ok((!has_null).then_some(Datum::Bool(is_all)))
}

fn among(by: &Order, set: &[Datum<'_>], value: &Datum<'_>) -> Result<bool, EvalError> {
    let (mut from, mut to) = (0, set.len());
    while from < to {
        let middle = from.midpoint(to);
        let Some(element) = set.get(middle) else { break };
        match by.compare(element, value)? {
            Ordering::Less => from = middle + 1,
            Ordering::Greater => to = middle,
            Ordering::Equal => return Ok(true),
        }
    }
    Ok(false)
}

fn json_get<'a>(
    document: Datum<'a>,
    key: &Datum<'_>,
    is_binary: bool,
    as_text: bool,
) -> Result<Option<Cow<'a, [u8]>>, EvalError> {
    match document {
        Datum::Text(Cow::Borrowed(document)) => json_part(document, key, is_binary, as_text),
        Datum::Text(Cow::Owned(document)) => {
            let part = json_part(&document, key, is_binary, as_text)?;
            Ok(part.map(|part| Cow::Owned(part.into_owned())))
        }
        _ => Err(EvalError::Form { type_name: "json" }),
    }
}

fn json_part<'a>(
    document: &'a [u8],
    key: &Datum<'_>,
    is_binary: bool,
    as_text: bool,
) -> Result<Option<Cow<'a, [u8]>>, EvalError> {
    let part = match key {
        Datum::Text(key) => json::field(document, key, is_binary)?,
        Datum::Int(index) => json::element(document, *index, is_binary)?,
        _ => return Err(EvalError::Form { type_name: "text" }),
    };
    match part {
        Some(part) if as_text => json::as_text(part),
        part => Ok(part.map(Cow::Borrowed)),
    }
}
