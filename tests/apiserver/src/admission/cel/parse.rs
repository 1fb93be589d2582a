//! Text to expression, by recursive descent; precedence as in the definition of CEL.

use serde_json::{Number, Value};

use super::{Expr, Function, Operator};

/// Fields of `request` (`AdmissionRequest`); its type is known, so another name is an error at once.
const REQUEST: [&str; 13] = [
    "kind",
    "resource",
    "subResource",
    "requestKind",
    "requestResource",
    "requestSubResource",
    "name",
    "namespace",
    "operation",
    "userInfo",
    "dryRun",
    "options",
    "uid",
];

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Name(String),
    Text(String),
    Number(Number),
    Sign(&'static str),
}

const SIGNS: [&str; 19] =
    ["&&", "||", "==", "!=", "<=", ">=", "<", ">", "!", "(", ")", "[", "]", ".", ",", "?", ":", "-", "+"];

pub(super) fn expression(text: &str) -> Result<Expr, String> {
    let mut parser = Parser { tokens: tokens(text)?, at: 0, locals: Vec::new() };
    let expr = parser.choose()?;
    match parser.tokens.get(parser.at) {
        None => Ok(expr),
        Some(token) => Err(format!("unexpected {}", shown(token))),
    }
}

fn shown(token: &Token) -> String {
    match token {
        Token::Name(name) => format!("'{name}'"),
        Token::Text(text) => format!("the text '{text}'"),
        Token::Number(number) => number.to_string(),
        Token::Sign(sign) => format!("'{sign}'"),
    }
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut found = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = if first == '"' || first == '\'' {
            let (token, length) = string(rest, first)?;
            found.push(Token::Text(token));
            length
        } else if first.is_ascii_digit() {
            let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
            found.push(Token::Number(rest[..end].parse().map_err(|_| format!("{} is no number", &rest[..end]))?));
            end
        } else if first.is_ascii_alphabetic() || first == '_' {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
            found.push(Token::Name(rest[..end].to_owned()));
            end
        } else {
            let sign = SIGNS.iter().find(|sign| rest.starts_with(**sign));
            let sign = *sign.ok_or_else(|| format!("unexpected character '{first}'"))?;
            found.push(Token::Sign(sign));
            sign.len()
        };
        rest = rest[length..].trim_start();
    }
    Ok(found)
}

fn string(text: &str, quote: char) -> Result<(String, usize), String> {
    let mut value = String::new();
    let mut chars = text.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some((_, c @ ('\\' | '\'' | '"'))) => value.push(c),
                _ => return Err("an escape that is not known here".to_owned()),
            },
            c if c == quote => return Ok((value, at + 1)),
            c => value.push(c),
        }
    }
    Err("a text without its end".to_owned())
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    /// Names that `exists` and `all` have brought.
    locals: Vec<String>,
}

impl Parser {
    fn next(&mut self) -> Result<Token, String> {
        let token = self.tokens.get(self.at).cloned().ok_or("the expression ends too early")?;
        self.at += 1;
        Ok(token)
    }

    fn take(&mut self, sign: &str) -> bool {
        let found = matches!(self.tokens.get(self.at), Some(Token::Sign(found)) if *found == sign);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, sign: &str) -> Result<(), String> {
        if self.take(sign) { Ok(()) } else { Err(format!("'{sign}' is missing")) }
    }

    fn name(&mut self) -> Result<String, String> {
        match self.next()? {
            Token::Name(name) => Ok(name),
            other => Err(format!("unexpected {}", shown(&other))),
        }
    }

    fn choose(&mut self) -> Result<Expr, String> {
        let condition = self.or()?;
        if !self.take("?") {
            return Ok(condition);
        }
        let yes = self.or()?;
        self.expect(":")?;
        Ok(Expr::Choose(Box::new(condition), Box::new(yes), Box::new(self.choose()?)))
    }

    fn or(&mut self) -> Result<Expr, String> {
        let mut left = self.and()?;
        while self.take("||") {
            left = Expr::Binary(Box::new(left), Operator::Or, Box::new(self.and()?));
        }
        Ok(left)
    }

    fn and(&mut self) -> Result<Expr, String> {
        let mut left = self.relation()?;
        while self.take("&&") {
            left = Expr::Binary(Box::new(left), Operator::And, Box::new(self.relation()?));
        }
        Ok(left)
    }

    fn relation(&mut self) -> Result<Expr, String> {
        let left = self.unary()?;
        let operator = match self.tokens.get(self.at) {
            Some(Token::Sign("==")) => Operator::Equal,
            Some(Token::Sign("!=")) => Operator::NotEqual,
            Some(Token::Sign("<")) => Operator::Less,
            Some(Token::Sign("<=")) => Operator::LessOrEqual,
            Some(Token::Sign(">")) => Operator::Greater,
            Some(Token::Sign(">=")) => Operator::GreaterOrEqual,
            Some(Token::Name(name)) if name == "in" => Operator::In,
            _ => return Ok(left),
        };
        self.at += 1;
        Ok(Expr::Binary(Box::new(left), operator, Box::new(self.unary()?)))
    }

    fn unary(&mut self) -> Result<Expr, String> {
        if self.take("!") {
            return Ok(Expr::Not(Box::new(self.unary()?)));
        }
        let mut expr = self.primary()?;
        loop {
            if self.take("[") {
                let index = self.choose()?;
                self.expect("]")?;
                expr = Expr::Index(Box::new(expr), Box::new(index));
            } else if self.take(".") {
                let name = self.name()?;
                expr = if self.take("(") { self.method(expr, &name)? } else { select(expr, name)? };
            } else {
                return Ok(expr);
            }
        }
    }

    fn method(&mut self, of: Expr, name: &str) -> Result<Expr, String> {
        let of = Box::new(of);
        let function = match name {
            "startsWith" => Function::StartsWith,
            "endsWith" => Function::EndsWith,
            "contains" => Function::Contains,
            "size" => {
                self.expect(")")?;
                return Ok(Expr::Size(of));
            }
            "exists" | "all" => {
                let local = self.name()?;
                self.expect(",")?;
                self.locals.push(local.clone());
                let predicate = Box::new(self.choose()?);
                self.locals.pop();
                self.expect(")")?;
                return Ok(Expr::Every { list: of, name: local, predicate, all: name == "all" });
            }
            other => return Err(format!("the function '{other}' is not known here")),
        };
        let argument = Box::new(self.choose()?);
        self.expect(")")?;
        Ok(Expr::Call(of, function, argument))
    }

    fn primary(&mut self) -> Result<Expr, String> {
        match self.next()? {
            Token::Text(text) => Ok(Expr::Literal(text.into())),
            Token::Number(number) => Ok(Expr::Literal(number.into())),
            Token::Sign("(") => {
                let inner = self.choose()?;
                self.expect(")")?;
                Ok(inner)
            }
            Token::Sign("[") => {
                let mut items = Vec::new();
                while !self.take("]") {
                    items.push(self.choose()?);
                    if !self.take(",") {
                        self.expect("]")?;
                        break;
                    }
                }
                Ok(Expr::List(items))
            }
            Token::Name(name) => self.named(name),
            other @ Token::Sign(_) => Err(format!("unexpected {}", shown(&other))),
        }
    }

    fn named(&mut self, name: String) -> Result<Expr, String> {
        match name.as_str() {
            "true" => Ok(Expr::Literal(true.into())),
            "false" => Ok(Expr::Literal(false.into())),
            "null" => Ok(Expr::Literal(Value::Null)),
            "has" => {
                self.expect("(")?;
                let inner = self.unary()?;
                self.expect(")")?;
                match inner {
                    Expr::Select(of, name) => Ok(Expr::Has(of, name)),
                    _ => Err("has() wants a field".to_owned()),
                }
            }
            "size" => {
                self.expect("(")?;
                let inner = self.choose()?;
                self.expect(")")?;
                Ok(Expr::Size(Box::new(inner)))
            }
            "object" | "oldObject" | "request" => Ok(Expr::Variable(name)),
            local if self.locals.iter().any(|known| known == local) => Ok(Expr::Variable(name)),
            other => Err(format!("'{other}' is not known here")),
        }
    }
}

fn select(of: Expr, name: String) -> Result<Expr, String> {
    if matches!(&of, Expr::Variable(variable) if variable == "request") && !REQUEST.contains(&name.as_str()) {
        return Err(format!("undefined field '{name}'"));
    }
    Ok(Expr::Select(Box::new(of), name))
}
