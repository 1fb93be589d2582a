//! From a text to trees that can be executed: what no pod could be rendered with is refused here, with its line.
//!
//! The engine has neither methods nor places of errors. Methods without arguments that only read (`GetX`, `String`,
//! `GetValue`) become plain fields; in front of every action stands a call that notes its line.

use gotmpl::parse::{
    ActionNode, BranchNode, CommandNode, DefineNode, Expr, ListNode, Node, Number, Parser, PipeNode, Pos, SmolStr,
};
use gotmpl::{FuncMap, TemplateError};

use super::{data, functions};

/// Name of the tree of the text itself. No `define` can write it.
pub(super) const MAIN: &str = "\0main";
/// Notes the line of an action. No text can write the name.
pub(super) const STEP: &str = "\0step";
/// `index` on a map of texts: what is missing is the empty text.
pub(super) const INDEX_TEXTS: &str = "\0index";

/// The trees of a template with their names.
pub(super) fn compile(text: &str, functions: &FuncMap) -> Result<Vec<(String, ListNode)>, Vec<String>> {
    let parsed = Parser::new(text, "{{", "}}").and_then(Parser::parse);
    let (mut tree, mut defines) = parsed.map_err(|error| vec![syntax(error)])?;
    let names = defines.iter().map(|define| define.name.clone()).collect();
    let mut check = Check {
        functions,
        templates: names,
        scopes: Vec::new(),
        place: Place::Root,
        in_define: false,
        findings: Vec::new(),
    };
    for (index, define) in defines.iter().enumerate() {
        if defines[..index].iter().any(|other| other.name == define.name) {
            check.refuse(define.pos, format!("template {:?} is defined twice", define.name.as_str()));
        }
    }
    check.tree(&mut tree, false);
    for define in &mut defines {
        check.tree(&mut define.body, true);
    }
    if !check.findings.is_empty() {
        return Err(check.findings);
    }
    let defines = defines.into_iter().map(|DefineNode { name, body, .. }| (name.to_string(), body));
    Ok(std::iter::once((MAIN.to_owned(), tree)).chain(defines).collect())
}

pub(super) fn syntax(error: TemplateError) -> String {
    match error {
        TemplateError::Parse { line, message, .. } | TemplateError::Lex { line, message, .. } => {
            format!("line {line}: {message}")
        }
        other => other.to_string(),
    }
}

/// What is known about the dot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// It is the context.
    Root,
    /// Nothing: it is an element, or what a caller hands over.
    Elsewhere,
}

struct Check<'a> {
    functions: &'a FuncMap,
    templates: Vec<SmolStr>,
    /// Variables, innermost block last.
    scopes: Vec<Vec<SmolStr>>,
    place: Place,
    in_define: bool,
    findings: Vec<String>,
}

impl Check<'_> {
    fn refuse(&mut self, pos: Pos, reason: impl AsRef<str>) {
        let finding = format!("line {}: {}", pos.line, reason.as_ref());
        if !self.findings.contains(&finding) {
            self.findings.push(finding);
        }
    }

    fn tree(&mut self, tree: &mut ListNode, in_define: bool) {
        self.in_define = in_define;
        self.place = if in_define { Place::Elsewhere } else { Place::Root };
        self.scopes = vec![Vec::new()];
        self.list(tree);
    }

    fn list(&mut self, list: &mut ListNode) {
        let mut nodes = Vec::with_capacity(list.nodes.len() * 2);
        for mut node in list.nodes.drain(..) {
            let pos = match &mut node {
                Node::Text(_) | Node::Break(_) | Node::Continue(_) | Node::Define(_) => None,
                Node::List(inner) => {
                    self.list(inner);
                    None
                }
                Node::Action(action) => {
                    self.pipe(&mut action.pipe);
                    self.declare(&action.pipe);
                    Some(action.pos)
                }
                Node::If(branch) => {
                    self.branch(branch, self.place);
                    Some(branch.pos)
                }
                Node::Range(branch) | Node::With(branch) => {
                    self.branch(branch, Place::Elsewhere);
                    Some(branch.pos)
                }
                Node::Template(call) => {
                    if !self.templates.contains(&call.name) {
                        self.refuse(call.pos, format!("template {:?} is not defined", call.name.as_str()));
                    }
                    if let Some(pipe) = &mut call.pipe {
                        self.pipe(pipe);
                    }
                    Some(call.pos)
                }
            };
            nodes.extend(pos.map(step));
            nodes.push(node);
        }
        list.nodes = nodes;
    }

    fn branch(&mut self, branch: &mut BranchNode, inside: Place) {
        self.scopes.push(Vec::new());
        self.pipe(&mut branch.pipe);
        self.declare(&branch.pipe);
        let outside = std::mem::replace(&mut self.place, inside);
        self.block(&mut branch.body);
        self.place = outside;
        if let Some(body) = &mut branch.else_body {
            self.block(body);
        }
        self.scopes.pop();
    }

    fn block(&mut self, body: &mut ListNode) {
        self.scopes.push(Vec::new());
        self.list(body);
        self.scopes.pop();
    }

    /// Variables that a pipeline declares or assigns to.
    fn declare(&mut self, pipe: &PipeNode) {
        for name in &pipe.decl {
            if !pipe.is_assign {
                if let Some(scope) = self.scopes.last_mut() {
                    scope.push(name.clone());
                }
            } else if !self.knows(name) {
                self.refuse(pipe.pos, format!("variable {name} is assigned to but not declared"));
            }
        }
    }

    fn knows(&self, variable: &SmolStr) -> bool {
        variable == "$" || self.scopes.iter().flatten().any(|known| known == variable)
    }

    fn pipe(&mut self, pipe: &mut PipeNode) {
        for (index, command) in pipe.commands.iter_mut().enumerate() {
            self.command(command, index > 0);
        }
    }

    fn command(&mut self, command: &mut CommandNode, piped: bool) {
        let alone = command.args.len() == 1 && !piped;
        let pos = command.pos;
        for arg in &mut command.args {
            self.expression(arg);
        }
        let [first, rest @ ..] = command.args.as_mut_slice() else { return };
        match first {
            Expr::Identifier(_, name) => {
                if name == "index" && rest.first().is_some_and(is_map_of_texts) {
                    *name = INDEX_TEXTS.into();
                }
            }
            Expr::Chain(_, inner, _) if matches!(**inner, Expr::Identifier(..)) => {}
            Expr::Nil(_) if alone => self.refuse(pos, "nil is not a command"),
            _ if alone => {}
            other => {
                let what = describe(other);
                self.refuse(
                    pos,
                    format!("{what} is given arguments, but methods with arguments cannot be called here"),
                );
            }
        }
    }

    fn expression(&mut self, expr: &mut Expr) {
        match expr {
            Expr::Identifier(pos, name) => {
                let (pos, known) = (*pos, functions::is_known(self.functions, name));
                if !known {
                    let reason = format!("function {:?} is not known", name.as_str());
                    self.refuse(pos, reason);
                }
            }
            Expr::Field(pos, fields) => {
                let (pos, root) = (*pos, self.place == Place::Root);
                self.chain(pos, fields, root);
                if fields.is_empty() {
                    *expr = Expr::Dot(pos);
                }
            }
            Expr::Variable(pos, name, fields) => {
                let (pos, root) = (*pos, name == "$" && !self.in_define);
                if !self.knows(name) {
                    let reason = format!("variable {name} is not declared");
                    self.refuse(pos, reason);
                }
                self.chain(pos, fields, root);
            }
            Expr::Chain(pos, inner, fields) => {
                let pos = *pos;
                self.expression(inner);
                self.chain(pos, fields, false);
            }
            Expr::Pipe(_, pipe) => self.pipe(pipe),
            Expr::Dot(_) | Expr::String(..) | Expr::Number(..) | Expr::Bool(..) | Expr::Nil(_) => {}
        }
    }

    /// Turns methods that only read into fields, and checks names that lead into typed parts of the context.
    fn chain(&mut self, pos: Pos, fields: &mut Vec<SmolStr>, from_root: bool) {
        if fields.first().is_some_and(|first| first == "Values") {
            return;
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
            return;
        }
        let mut path = String::new();
        for field in fields.iter() {
            match data::has_field(&path, field) {
                None => return,
                Some(true) => path = format!("{path}.{field}"),
                Some(false) => {
                    let of = if path.is_empty() { "the context" } else { &path };
                    return self.refuse(pos, format!("{of} has no field {:?}", field.as_str()));
                }
            }
        }
    }
}

/// `.ObjectMeta.Labels` and `.ObjectMeta.Annotations`, wherever the walk to them starts.
fn is_map_of_texts(expr: &Expr) -> bool {
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

/// A call that notes a line and prints nothing.
fn step(pos: Pos) -> Node {
    let line = i64::try_from(pos.line).unwrap_or(i64::MAX);
    let command =
        CommandNode { pos, args: vec![Expr::Identifier(pos, STEP.into()), Expr::Number(pos, Number::Int(line))] };
    Node::Action(ActionNode {
        pos,
        pipe: PipeNode { pos, decl: Vec::new(), commands: vec![command], is_assign: false },
    })
}
