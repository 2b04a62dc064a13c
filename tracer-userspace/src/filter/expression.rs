//! A filter in the syntax of tcpdump: `host 10.0.0.1 and not (port 443 or src net 10.9.0.0/16)`.

use std::{fmt, net::SocketAddr};

use rsttrace_model::escape;

use super::{SIMILAR, Side};

/// A parsed expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expression {
    And(Box<Self>, Box<Self>),
    Or(Box<Self>, Box<Self>),
    Not(Box<Self>),
    Address(End, Side),
    /// First and last port.
    Ports(End, u16, u16),
    /// `tcp`, `ip` and `ip6`: whether the address family is IPv6; `None` for both families.
    Family(Option<bool>),
}

/// Which end of the connection a keyword applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Source,
    Destination,
    Either,
}

/// Levels of nesting: no person writes more, and each level is one level of recursion.
const DEEPEST: usize = 64;

/// Keywords that begin a test.
const KEYWORDS: [&str; 9] = ["host", "net", "port", "portrange", "src", "dst", "tcp", "ip", "ip6"];

/// Columns of an expression that is repeated in an error.
const WIDEST: usize = 200;

/// What is wrong with an expression, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    what: String,
    /// The expression, and a line of `^` below the wrong word; empty if the expression is too long.
    place: String,
}

impl ParseError {
    fn new(text: &str, fault: Fault) -> Self {
        let (before, rest) = text.split_at_checked(fault.at).unwrap_or((text, ""));
        let word = rest.get(..fault.length).unwrap_or_default();
        let [before, word, line] = [before, word, text].map(escape::terminal);
        let place = match line.chars().count() <= WIDEST {
            true => {
                let gap = " ".repeat(before.chars().count());
                format!("\n  {line}\n  {gap}{}", "^".repeat(word.chars().count().max(1)))
            }
            false => String::new(),
        };
        Self { what: fault.what, place }
    }
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.what, self.place)
    }
}

/// An error at a byte offset of the expression.
struct Fault {
    at: usize,
    length: usize,
    what: String,
}

impl Expression {
    /// Parses an expression.
    ///
    /// # Errors
    /// What is wrong, the word at which parsing stopped, and its place in the expression.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        Words::new(text).whole().map_err(|fault| ParseError::new(text, fault))
    }

    /// Whether a connection with these addresses (before and after NAT) matches.
    pub fn matches(&self, source: &[SocketAddr], destination: &[SocketAddr]) -> bool {
        let any = |end: End, holds: &dyn Fn(&SocketAddr) -> bool| {
            (end != End::Destination && source.iter().any(holds))
                || (end != End::Source && destination.iter().any(holds))
        };
        match self {
            Self::And(a, b) => a.matches(source, destination) && b.matches(source, destination),
            Self::Or(a, b) => a.matches(source, destination) || b.matches(source, destination),
            Self::Not(inner) => !inner.matches(source, destination),
            Self::Address(end, side) => any(*end, &|address| side.matches(*address)),
            Self::Ports(end, first, last) => {
                any(*end, &|address| (*first..=*last).contains(&address.port()))
            }
            Self::Family(None) => true,
            Self::Family(Some(v6)) => any(End::Either, &|address| address.is_ipv6() == *v6),
        }
    }
}

/// Operators that need no space around them.
const OPERATORS: [&str; 5] = ["(", ")", "!", "&&", "||"];

/// The words of an expression, with their byte offsets.
fn split(text: &str) -> Vec<(usize, &str)> {
    let mut words = Vec::new();
    let mut at = 0;
    while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
        let operator = |rest: &str| OPERATORS.into_iter().find(|it| rest.starts_with(it));
        let ends = |(index, c): (usize, char)| {
            (c.is_whitespace() || operator(&rest[index..]).is_some()).then_some(index)
        };
        let length = match (rest.chars().next(), operator(rest)) {
            (Some(c), _) if c.is_whitespace() => {
                at += c.len_utf8();
                continue;
            }
            (_, Some(operator)) => operator.len(),
            _ => rest.char_indices().find_map(ends).unwrap_or(rest.len()),
        };
        words.push((at, &rest[..length]));
        at += length;
    }
    words
}

/// The words not parsed yet, the next one last.
struct Words<'a> {
    rest: Vec<(usize, &'a str)>,
    depth: usize,
    /// Offset and length of the word taken last.
    last: (usize, usize),
    /// Offset of the end of the expression.
    end: usize,
}

impl<'a> Words<'a> {
    fn new(text: &'a str) -> Self {
        let mut rest = split(text);
        rest.reverse();
        Self { rest, depth: 0, last: (0, 0), end: text.trim_end().len() }
    }

    fn next(&mut self) -> Option<&'a str> {
        let (at, word) = self.rest.pop()?;
        self.last = (at, word.len());
        Some(word)
    }

    fn peek(&self) -> Option<&'a str> {
        self.rest.last().map(|(_, word)| *word)
    }

    fn take(&mut self, words: &[&str]) -> bool {
        let found = self.peek().is_some_and(|next| words.contains(&next));
        if found {
            self.next();
        }
        found
    }

    /// An error at the word taken last.
    fn fault(&self, what: String) -> Fault {
        let (at, length) = self.last;
        Fault { at, length, what }
    }

    /// An error at the next word, or at the end of the expression.
    fn fault_next(&self, what: String) -> Fault {
        match self.rest.last() {
            Some((at, word)) => Fault { at: *at, length: word.len(), what },
            None => Fault { at: self.end, length: 0, what },
        }
    }

    fn whole(mut self) -> Result<Expression, Fault> {
        let expression = self.or()?;
        match self.next() {
            None => Ok(expression),
            Some(word) => Err(self.fault(format!("unexpected `{word}` (expected `and` or `or`)"))),
        }
    }

    fn or(&mut self) -> Result<Expression, Fault> {
        let mut left = self.and()?;
        while self.take(&["or", "||"]) {
            left = Expression::Or(Box::new(left), Box::new(self.and()?));
        }
        Ok(left)
    }

    fn and(&mut self) -> Result<Expression, Fault> {
        let mut left = self.not()?;
        while self.take(&["and", "&&"]) {
            left = Expression::And(Box::new(left), Box::new(self.not()?));
        }
        Ok(left)
    }

    fn not(&mut self) -> Result<Expression, Fault> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(self.fault_next("nested too deeply".into()));
        }
        let inner = if self.take(&["not", "!"]) {
            Expression::Not(Box::new(self.not()?))
        } else if self.take(&["("]) {
            let inner = self.or()?;
            if !self.take(&[")"]) {
                return Err(self.fault_next("missing `)`".into()));
            }
            inner
        } else {
            self.test()?
        };
        self.depth -= 1;
        Ok(inner)
    }

    fn test(&mut self) -> Result<Expression, Fault> {
        let direction = self.peek().filter(|word| ["src", "dst"].contains(word));
        let end = match direction {
            Some("src") => End::Source,
            Some(_) => End::Destination,
            None => End::Either,
        };
        if direction.is_some() {
            self.next();
        }
        let Some(word) = self.next() else {
            let what = "unexpected end (expected `host ADDR`, `port N` or another test)";
            return Err(self.fault_next(what.into()));
        };
        match word {
            "host" | "net" => {
                let value = self.value(word)?;
                let side = value.parse().map_err(|what| self.fault(what))?;
                Ok(Expression::Address(end, side))
            }
            "port" => {
                let value = self.value(word)?;
                let port = port(value).map_err(|what| self.fault(what))?;
                Ok(Expression::Ports(end, port, port))
            }
            "portrange" => {
                let value = self.value(word)?;
                let (first, last) = ports(value).map_err(|what| self.fault(what))?;
                Ok(Expression::Ports(end, first, last))
            }
            "tcp" if end == End::Either => Ok(Expression::Family(None)),
            "ip" if end == End::Either => Ok(Expression::Family(Some(false))),
            "ip6" if end == End::Either => Ok(Expression::Family(Some(true))),
            // As in tcpdump, an address without a keyword is a host.
            address => match address.parse() {
                Ok(side) => Ok(Expression::Address(end, side)),
                Err(what) => Err(self.fault(not_a_test(address, direction, what))),
            },
        }
    }

    fn value(&mut self, keyword: &str) -> Result<&'a str, Fault> {
        self.next().ok_or_else(|| self.fault_next(format!("missing value after `{keyword}`")))
    }
}

/// What is wrong with a word that is neither a keyword nor an address.
fn not_a_test(word: &str, direction: Option<&str>, no_address: String) -> String {
    if let Some(direction) = direction.filter(|_| KEYWORDS.contains(&word)) {
        return format!(
            "unexpected `{word}` after `{direction}` (expected host, net, port or portrange)"
        );
    }
    if word.contains(['.', ':', '/']) {
        return no_address;
    }
    let likeness = |keyword: &&str| strsim::jaro(keyword, word);
    let near = KEYWORDS.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    match near.filter(|keyword| likeness(keyword) > SIMILAR) {
        Some(keyword) => format!("unknown keyword `{word}` (did you mean `{keyword}`?)"),
        None => format!(
            "unknown keyword `{word}` (expected an address, host, net, port, portrange, src, dst, tcp, ip or \
             ip6)"
        ),
    }
}

fn port(text: &str) -> Result<u16, String> {
    let port = text.parse().ok().filter(|port| *port > 0);
    port.ok_or_else(|| format!("invalid port `{text}` (expected 1 to 65535)"))
}

fn ports(text: &str) -> Result<(u16, u16), String> {
    let (first, last) = text.split_once('-').ok_or_else(|| {
        format!("invalid port range `{text}` (expected a range such as 8000-8080)")
    })?;
    Ok((port(first)?, port(last)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rsttrace_model::testing::address;

    /// Client 10.0.0.2:41822 to 10.96.0.10:3306, translated to 10.0.1.2:3306.
    fn fits(text: &str) -> bool {
        let destination = [address("10.96.0.10:3306"), address("10.0.1.2:3306")];
        Expression::parse(text)
            .expect("an expression")
            .matches(&[address("10.0.0.2:41822")], &destination)
    }

    #[test]
    fn a_test_matches_either_end_or_the_given_one_before_and_after_nat() {
        for yes in [
            "host 10.0.0.2",
            "src host 10.0.0.2",
            "dst host 10.0.1.2",
            "10.96.0.10",
            "net 10.0.0.0/8",
            "port 3306",
            "dst port 3306",
            "portrange 3000-4000",
            "tcp",
            "ip",
        ] {
            assert!(fits(yes), "{yes}");
        }
        for no in ["dst host 10.0.0.2", "src port 3306", "net 192.168.0.0/16", "ip6", "port 443"] {
            assert!(!fits(no), "{no}");
        }
    }

    #[test]
    fn and_binds_closer_than_or_and_not_closest() {
        assert!(fits("port 3306 or port 1 and port 2"));
        assert!(!fits("(port 3306 or port 1) and port 2"));
        assert!(fits("not port 1 and host 10.0.0.2"));
        assert!(fits("!(port 1||port 2)&&tcp"));
        assert!(!fits("not (port 3306 or port 1)"));
    }

    #[test]
    fn an_invalid_expression_is_an_error_that_names_the_word() {
        for (text, word) in [
            ("", "unexpected end"),
            ("host", "missing value after `host`"),
            ("host nowhere", "nowhere"),
            ("port 0", "`0`"),
            ("port 99999", "99999"),
            ("portrange 5", "range"),
            ("host 10.0.0.1 10.0.0.2", "10.0.0.2"),
            ("(port 1", "`)`"),
            ("port 1 and", "unexpected end"),
            ("src tcp", "unexpected `tcp` after `src`"),
            ("udp", "unknown keyword `udp`"),
            ("prt 3306", "unknown keyword `prt` (did you mean `port`?)"),
            ("10.0.0.300", "invalid address `10.0.0.300`"),
        ] {
            let error = Expression::parse(text).expect_err(text).what;
            assert!(error.contains(word), "{text}: {error}");
        }
        assert!(Expression::parse(&"(".repeat(100_000)).is_err());
        assert!(Expression::parse(&"not ".repeat(100_000)).is_err());
    }

    #[test]
    fn an_error_marks_the_wrong_word_or_the_end() {
        for (text, marked) in [
            ("host 10.0.0.1 and prt 3306", "                  ^^^"),
            ("port 1 and", "          ^"),
            ("(port 1", "       ^"),
            ("(port 1||port 0)", "              ^"),
            ("\u{1b}[2J", "^^^^^^^^^"),
        ] {
            let error = Expression::parse(text).expect_err(text).to_string();
            let line = escape::terminal(text);
            assert!(error.ends_with(&format!("\n  {line}\n  {marked}")), "{error}");
        }
        let long = Expression::parse(&"(".repeat(100_000)).expect_err("nested").to_string();
        assert_eq!(long, "nested too deeply");
    }
}
