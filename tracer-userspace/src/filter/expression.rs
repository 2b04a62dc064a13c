//! A filter as tcpdump users write it: `host 10.0.0.1 and not (port 443 or src net 10.9.0.0/16)`.

use std::net::SocketAddr;

use super::Side;

/// A parsed expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expression {
    And(Box<Self>, Box<Self>),
    Or(Box<Self>, Box<Self>),
    Not(Box<Self>),
    Address(End, Side),
    /// First and last port.
    Ports(End, u16, u16),
    /// `tcp`, `ip` and `ip6`: the address family, if one is meant.
    Family(Option<bool>),
}

/// Which end of the connection a test is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Source,
    Destination,
    Either,
}

/// Deeper nesting is nothing a person writes.
const DEEPEST: usize = 64;

impl Expression {
    /// Reads words as a shell passes them, in one argument or several.
    ///
    /// # Errors
    /// A sentence that names the word at which it went wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let spaced = text
            .replace('(', " ( ")
            .replace(')', " ) ")
            .replace('!', " ! ")
            .replace("&&", " && ")
            .replace("||", " || ");
        let mut words = Words { rest: spaced.split_whitespace().collect(), depth: 0 };
        words.rest.reverse();
        let expression = words.or()?;
        match words.next() {
            None => Ok(expression),
            Some(word) => Err(format!("`{word}` does not belong there")),
        }
    }

    /// Whether a connection with these addresses (both sides of NAT) fits.
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

/// The words not read yet, the next one last.
struct Words<'a> {
    rest: Vec<&'a str>,
    depth: usize,
}

impl<'a> Words<'a> {
    fn next(&mut self) -> Option<&'a str> {
        self.rest.pop()
    }

    fn take(&mut self, words: &[&str]) -> bool {
        let found = self.rest.last().is_some_and(|next| words.contains(next));
        if found {
            self.rest.pop();
        }
        found
    }

    fn or(&mut self) -> Result<Expression, String> {
        let mut left = self.and()?;
        while self.take(&["or", "||"]) {
            left = Expression::Or(Box::new(left), Box::new(self.and()?));
        }
        Ok(left)
    }

    fn and(&mut self) -> Result<Expression, String> {
        let mut left = self.not()?;
        while self.take(&["and", "&&"]) {
            left = Expression::And(Box::new(left), Box::new(self.not()?));
        }
        Ok(left)
    }

    fn not(&mut self) -> Result<Expression, String> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err("it is nested too deeply".into());
        }
        let inner = if self.take(&["not", "!"]) {
            Expression::Not(Box::new(self.not()?))
        } else if self.take(&["("]) {
            let inner = self.or()?;
            if !self.take(&[")"]) {
                return Err("a `)` is missing".into());
            }
            inner
        } else {
            self.test()?
        };
        self.depth -= 1;
        Ok(inner)
    }

    fn test(&mut self) -> Result<Expression, String> {
        let end = match self.rest.last() {
            Some(&"src") => End::Source,
            Some(&"dst") => End::Destination,
            _ => End::Either,
        };
        if end != End::Either {
            self.rest.pop();
        }
        let Some(word) = self.next() else {
            return Err("it ends where a test such as `host ADDR` or `port N` should be".into());
        };
        match word {
            "host" | "net" => {
                let value = self.value(word)?;
                value.parse().map(|side| Expression::Address(end, side))
            }
            "port" => {
                let port = port(self.value(word)?)?;
                Ok(Expression::Ports(end, port, port))
            }
            "portrange" => {
                let value = self.value(word)?;
                let (first, last) = value
                    .split_once('-')
                    .ok_or_else(|| format!("`{value}` is no range such as 8000-8080"))?;
                Ok(Expression::Ports(end, port(first)?, port(last)?))
            }
            "tcp" if end == End::Either => Ok(Expression::Family(None)),
            "ip" if end == End::Either => Ok(Expression::Family(Some(false))),
            "ip6" if end == End::Either => Ok(Expression::Family(Some(true))),
            // As tcpdump: an address alone is a host.
            address => address.parse().map(|side| Expression::Address(end, side)).map_err(|_| {
                format!(
                    "`{address}` is no test; there are host, net, port, portrange (each after src or \
                     dst, if you like), tcp, ip, ip6, and, or, not and parentheses"
                )
            }),
        }
    }

    fn value(&mut self, test: &str) -> Result<&'a str, String> {
        self.next().ok_or_else(|| format!("`{test}` wants a value"))
    }
}

fn port(text: &str) -> Result<u16, String> {
    text.parse().ok().filter(|port| *port > 0).ok_or_else(|| format!("`{text}` is no port"))
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
    fn tests_are_about_either_end_or_the_one_named_on_both_sides_of_nat() {
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
    fn what_is_no_expression_is_told_by_its_word() {
        for (text, word) in [
            ("", "ends where"),
            ("host", "wants a value"),
            ("host nowhere", "nowhere"),
            ("port 0", "`0`"),
            ("port 99999", "99999"),
            ("portrange 5", "range"),
            ("host 10.0.0.1 10.0.0.2", "10.0.0.2"),
            ("(port 1", "`)`"),
            ("port 1 and", "ends where"),
            ("src tcp", "tcp"),
            ("udp", "udp"),
        ] {
            let error = Expression::parse(text).expect_err(text);
            assert!(error.contains(word), "{text}: {error}");
        }
        assert!(Expression::parse(&"(".repeat(100_000)).is_err());
        assert!(Expression::parse(&"not ".repeat(100_000)).is_err());
    }
}
