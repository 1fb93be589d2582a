//! Compiles a template to trees that the engine can execute, and rejects what would fail for every pod, with its line.
//!
//! The engine has neither methods nor lines in errors. Methods without arguments that only read (`GetX`, `String`, `GetValue`)
//! are compiled to fields, and a call that records the line is inserted before every action.

use gotmpl::parse::{
    ActionNode, BranchNode, CommandNode, DefineNode, Expr, ListNode, Node, Number, Parser, PipeNode, Pos, SmolStr,
};
use gotmpl::{FuncMap, TemplateError};

use super::functions::{FAIL, FIELD, INDEX_STRINGS, PRINT, START_ACTION};
use super::{data, functions};

/// Name of the main tree. No `define` can have it.
pub(super) const MAIN: &str = "\0main";

/// A template that the engine can execute.
pub(super) struct Compiled {
    /// The trees with their names.
    pub(super) trees: Vec<(String, ListNode)>,
    /// Fields and nested templates that do not exist; as in Go, rendering fails only where they are used.
    pub(super) warnings: Vec<String>,
}

/// Compiles a template.
pub(super) fn compile(text: &str, functions: &FuncMap) -> Result<Compiled, Vec<String>> {
    let parsed = Parser::new(text, "{{", "}}").and_then(Parser::parse);
    let (mut tree, mut defines) = parsed.map_err(|error| vec![format_syntax_error(error)])?;
    let names = defines.iter().map(|define| define.name.clone()).collect();
    let mut checker = Checker {
        functions,
        templates: names,
        scopes: Vec::new(),
        dot: DotScope::Root,
        in_define: false,
        errors: Vec::new(),
        warnings: Vec::new(),
    };
    for (index, define) in defines.iter().enumerate() {
        if defines[..index].iter().any(|other| other.name == define.name) {
            checker.add_error(define.pos, format!("template {:?} redefined", define.name.as_str()));
        }
    }
    checker.check_tree(&mut tree, false);
    for define in &mut defines {
        checker.check_tree(&mut define.body, true);
    }
    if !checker.errors.is_empty() {
        return Err(checker.errors);
    }
    let defines = defines.into_iter().map(|DefineNode { name, body, .. }| (name.to_string(), body));
    let trees = std::iter::once((MAIN.to_owned(), tree)).chain(defines).collect();
    Ok(Compiled { trees, warnings: checker.warnings })
}

pub(super) fn format_syntax_error(error: TemplateError) -> String {
    match error {
        TemplateError::Parse { line, message, .. } | TemplateError::Lex { line, message, .. } => {
            format!("line {line}: {message}")
        }
        other => other.to_string(),
    }
}

/// Value that the dot refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DotScope {
    /// The data of the template.
    Root,
    /// An element, or a value that a caller passes.
    Unknown,
}

struct Checker<'a> {
    functions: &'a FuncMap,
    templates: Vec<SmolStr>,
    /// Variables of the enclosing blocks, innermost last.
    scopes: Vec<Vec<SmolStr>>,
    dot: DotScope,
    in_define: bool,
    errors: Vec<String>,
    warnings: Vec<String>,
}

impl Checker<'_> {
    fn add_error(&mut self, pos: Pos, reason: impl AsRef<str>) {
        let error = format!("line {}: {}", pos.line, reason.as_ref());
        if !self.errors.contains(&error) {
            self.errors.push(error);
        }
    }

    fn check_tree(&mut self, tree: &mut ListNode, in_define: bool) {
        self.in_define = in_define;
        self.dot = if in_define { DotScope::Unknown } else { DotScope::Root };
        self.scopes = vec![Vec::new()];
        self.check_list(tree);
    }

    fn check_list(&mut self, list: &mut ListNode) {
        let mut nodes = Vec::with_capacity(list.nodes.len() * 2);
        for mut node in list.nodes.drain(..) {
            let pos = match &mut node {
                Node::Text(_) | Node::Break(_) | Node::Continue(_) | Node::Define(_) => None,
                Node::List(inner) => {
                    self.check_list(inner);
                    None
                }
                Node::Action(action) => {
                    self.check_pipe(&mut action.pipe);
                    self.declare(&action.pipe);
                    if action.pipe.decl.is_empty() {
                        let pos = action.pos;
                        action.pipe.commands.push(CommandNode { pos, args: vec![Expr::Identifier(pos, PRINT.into())] });
                    }
                    Some(action.pos)
                }
                Node::If(branch) => {
                    self.check_branch(branch, self.dot);
                    Some(branch.pos)
                }
                Node::Range(branch) | Node::With(branch) => {
                    self.check_branch(branch, DotScope::Unknown);
                    Some(branch.pos)
                }
                Node::Template(call) => {
                    if !self.templates.contains(&call.name) {
                        let reason = format!("template {:?} not defined", call.name.as_str());
                        self.warnings.push(format!("line {}: {reason}", call.pos.line));
                    }
                    if let Some(pipe) = &mut call.pipe {
                        self.check_pipe(pipe);
                    }
                    Some(call.pos)
                }
            };
            nodes.extend(pos.map(start_action));
            nodes.push(node);
        }
        list.nodes = nodes;
    }

    fn check_branch(&mut self, branch: &mut BranchNode, inside: DotScope) {
        self.scopes.push(Vec::new());
        self.check_pipe(&mut branch.pipe);
        self.declare(&branch.pipe);
        let outside = std::mem::replace(&mut self.dot, inside);
        self.check_block(&mut branch.body);
        self.dot = outside;
        if let Some(body) = &mut branch.else_body {
            self.check_block(body);
        }
        self.scopes.pop();
    }

    fn check_block(&mut self, body: &mut ListNode) {
        self.scopes.push(Vec::new());
        self.check_list(body);
        self.scopes.pop();
    }

    /// Adds the variables that a pipeline declares, and checks those that it assigns to.
    fn declare(&mut self, pipe: &PipeNode) {
        for name in &pipe.decl {
            if !pipe.is_assign {
                if let Some(scope) = self.scopes.last_mut() {
                    scope.push(name.clone());
                }
            } else if !self.is_declared(name) {
                self.add_error(pipe.pos, format!("undefined variable {name} in assignment"));
            }
        }
    }

    fn is_declared(&self, variable: &SmolStr) -> bool {
        variable == "$" || self.scopes.iter().flatten().any(|known| known == variable)
    }

    fn check_pipe(&mut self, pipe: &mut PipeNode) {
        for (index, command) in pipe.commands.iter_mut().enumerate() {
            self.check_command(command, index > 0);
        }
    }

    fn check_command(&mut self, command: &mut CommandNode, piped: bool) {
        let alone = command.args.len() == 1 && !piped;
        let pos = command.pos;
        if let [Expr::Identifier(_, name), map, ..] = command.args.as_mut_slice()
            && name == "index"
            && is_string_map(map)
        {
            *name = INDEX_STRINGS.into();
        }
        let called = command.args.first().map_or("a literal".to_owned(), describe);
        for arg in &mut command.args {
            self.check_expression(arg);
        }
        let Some(first) = command.args.first() else { return };
        match first {
            Expr::Identifier(..) => {}
            Expr::Chain(_, inner, _) if matches!(**inner, Expr::Identifier(..)) => {}
            Expr::Nil(_) if alone => self.add_error(pos, "nil is not a command"),
            _ if alone => {}
            _ => {
                self.add_error(
                    pos,
                    format!("cannot pass arguments to {called}: methods with arguments are not supported"),
                );
            }
        }
    }

    fn check_expression(&mut self, expr: &mut Expr) {
        match expr {
            Expr::Identifier(pos, name) => {
                let (pos, is_defined) = (*pos, functions::is_defined(self.functions, name));
                if !is_defined {
                    let reason = format!("function {:?} not defined", name.as_str());
                    self.add_error(pos, reason);
                }
            }
            Expr::Field(pos, fields) => {
                let (pos, root) = (*pos, self.dot == DotScope::Root);
                match self.check_chain(pos, fields, root) {
                    Some(failure) => *expr = failure,
                    None if fields.is_empty() => *expr = Expr::Dot(pos),
                    None if root => {}
                    None => *expr = read_fields(pos, Expr::Dot(pos), fields),
                }
            }
            Expr::Variable(pos, name, fields) => {
                let (pos, root) = (*pos, name == "$" && !self.in_define);
                if !self.is_declared(name) {
                    let reason = format!("undefined variable {name}");
                    self.add_error(pos, reason);
                }
                match self.check_chain(pos, fields, root) {
                    Some(failure) => *expr = failure,
                    None if root || fields.is_empty() => {}
                    None => *expr = read_fields(pos, Expr::Variable(pos, name.clone(), Vec::new()), fields),
                }
            }
            Expr::Chain(pos, inner, fields) => {
                let pos = *pos;
                self.check_expression(inner);
                self.check_chain(pos, fields, false);
                if !matches!(**inner, Expr::Identifier(..)) {
                    let inner = std::mem::replace(&mut **inner, Expr::Nil(pos));
                    *expr = read_fields(pos, inner, fields);
                }
            }
            Expr::Pipe(_, pipe) => self.check_pipe(pipe),
            Expr::Dot(_) | Expr::String(..) | Expr::Number(..) | Expr::Bool(..) | Expr::Nil(_) => {}
        }
    }

    /// Turns methods that only read into fields, and checks the names of fields of known types. Returns what replaces a chain with
    /// a field that does not exist.
    fn check_chain(&mut self, pos: Pos, fields: &mut Vec<SmolStr>, from_root: bool) -> Option<Expr> {
        if fields.first().is_some_and(|first| first == "Values") {
            return None;
        }
        fields.retain(|field| field != "String" && field != "GetValue");
        for field in fields.iter_mut() {
            if let Some(stem) =
                field.strip_prefix("Get").filter(|stem| stem.starts_with(|c: char| c.is_ascii_uppercase()))
            {
                *field = stem.into();
            }
        }
        if !from_root {
            return None;
        }
        let mut path = String::new();
        for field in fields.iter() {
            match data::has_field(&path, field) {
                None => return None,
                Some(true) => path = format!("{path}.{field}"),
                Some(false) => {
                    let parent = if path.is_empty() { "the template data" } else { &path };
                    let reason = format!("{parent} has no field {:?}", field.as_str());
                    self.warnings.push(format!("line {}: {reason}", pos.line));
                    return Some(failure(pos, &reason));
                }
            }
        }
        None
    }
}

/// Returns whether the expression ends in `Labels` or `Annotations`.
fn is_string_map(expr: &Expr) -> bool {
    let (Expr::Field(_, fields) | Expr::Variable(_, _, fields)) = expr else { return false };
    fields.last().is_some_and(|last| last == "Labels" || last == "Annotations")
}

fn describe(expr: &Expr) -> String {
    let path = |fields: &[SmolStr]| fields.iter().fold(String::new(), |path, field| path + "." + field);
    match expr {
        Expr::Field(_, fields) => path(fields),
        Expr::Variable(_, name, fields) => format!("{name}{}", path(fields)),
        Expr::Chain(_, _, fields) => format!("(...){}", path(fields)),
        Expr::Pipe(..) => "(...)".to_owned(),
        Expr::Dot(_) => ".".to_owned(),
        _ => "a literal".to_owned(),
    }
}

/// Returns an expression that fails when it is evaluated.
fn failure(pos: Pos, reason: &str) -> Expr {
    call(pos, FAIL, [Expr::String(pos, reason.into())])
}

/// Returns an expression that reads a chain of fields.
fn read_fields(pos: Pos, value: Expr, fields: &[SmolStr]) -> Expr {
    let names = fields.iter().map(|field| Expr::String(pos, field.as_str().into()));
    call(pos, FIELD, std::iter::once(value).chain(names))
}

fn call(pos: Pos, function: &'static str, args: impl IntoIterator<Item = Expr>) -> Expr {
    let args = std::iter::once(Expr::Identifier(pos, function.into())).chain(args).collect();
    let commands = vec![CommandNode { pos, args }];
    Expr::Pipe(pos, PipeNode { pos, decl: Vec::new(), commands, is_assign: false })
}

/// Returns a call that records a line and prints nothing.
fn start_action(pos: Pos) -> Node {
    let line = i64::try_from(pos.line).unwrap_or(i64::MAX);
    let command = CommandNode {
        pos,
        args: vec![Expr::Identifier(pos, START_ACTION.into()), Expr::Number(pos, Number::Int(line))],
    };
    Node::Action(ActionNode {
        pos,
        pipe: PipeNode { pos, decl: Vec::new(), commands: vec![command], is_assign: false },
    })
}
