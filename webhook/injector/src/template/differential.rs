//! Compares this engine with Go's: generated templates must have the same output, byte for byte.
//!
//! `WEIR_TEMPLATES` sets the number of templates, `WEIR_TEMPLATES_SEED` selects them.

use serde_json::{Value, json};

use super::go::{GoEngine, number_from_env};
use super::tests::render;

/// Generates templates that Go can parse.
struct Generator {
    state: u64,
    variables: Vec<String>,
    /// Number of enclosing loops.
    loops: usize,
    /// Whether the dot refers to the root of the data.
    at_root: bool,
}

impl Generator {
    fn new(seed: u64) -> Self {
        Self { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, variables: Vec::new(), loops: 0, at_root: true }
    }

    fn below(&mut self, bound: usize) -> usize {
        // xorshift64*, of which the upper bits are random.
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        let number = usize::try_from(self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33).unwrap();
        number % bound
    }

    fn pick<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.below(choices.len())]
    }

    fn text(&mut self) -> &'static str {
        self.pick(&[
            " ",
            "\n",
            "  \n\t",
            "a",
            "key: value\n",
            "\r\n x",
            "- name: y\n  ",
            "\u{a0}",
            "{ }",
            "é\n\n",
            "}}",
            "\"q\" ",
            "#",
        ])
    }

    fn open(&mut self) -> &'static str {
        self.pick(&["{{", "{{ ", "{{- ", "{{-\n"])
    }

    fn close(&mut self) -> &'static str {
        self.pick(&["}}", " }}", " -}}", "\n-}}"])
    }

    fn action(&mut self, content: &str) -> String {
        format!("{}{content}{}", self.open(), self.close())
    }

    fn list(&mut self, depth: usize) -> String {
        let (length, known) = (1 + self.below(5), self.variables.len());
        let nodes = (0..length).map(|_| self.node(depth)).collect();
        self.variables.truncate(known);
        nodes
    }

    fn node(&mut self, depth: usize) -> String {
        match self.below(if depth == 0 { 7 } else { 12 }) {
            0..=2 => self.text().to_owned(),
            3 => self.comment(),
            4 | 5 => {
                let pipeline = self.pipeline(2);
                self.action(&pipeline)
            }
            6 => self.variable(),
            7 | 8 => self.branch(depth),
            9 => self.with(depth),
            _ => self.range(depth),
        }
    }

    fn comment(&mut self) -> String {
        let text = self.pick(&["", " c ", "\nlong\n", " }} ", "*"]);
        let (open, close) = (self.pick(&["{{", "{{- ", "{{-\n"]), self.pick(&["}}", " -}}", "\n-}}"]));
        format!("{open}/*{text}*/{close}")
    }

    fn variable(&mut self) -> String {
        let pipeline = self.pipeline(1);
        if let Some(known) = self.variables.last().cloned().filter(|_| self.below(2) == 0) {
            return self.action(&format!("{known} = {pipeline}"));
        }
        let name = format!("$v{}", self.variables.len());
        let action = self.action(&format!("{name} := {pipeline}"));
        self.variables.push(name);
        action
    }

    fn branch(&mut self, depth: usize) -> String {
        let condition = self.pipeline(1);
        let mut out = self.action(&format!("if {condition}"));
        out += &self.list(depth - 1);
        if self.below(3) == 0 {
            let condition = self.pipeline(1);
            out += &self.action(&format!("else if {condition}"));
            out += &self.list(depth - 1);
        }
        if self.below(2) == 0 {
            out += &self.action("else");
            out += &self.list(depth - 1);
        }
        out + &self.action("end")
    }

    fn with(&mut self, depth: usize) -> String {
        let value =
            self.pick(&["$.Values.map", "$.Values.text", "$.Values.missing", "$.Values.list", "$.Values.empty"]);
        let mut out = self.action(&format!("with {value}"));
        let outside = std::mem::replace(&mut self.at_root, false);
        out += &self.list(depth - 1);
        self.at_root = outside;
        if self.below(2) == 0 {
            out += &self.action("else");
            out += &self.list(depth - 1);
        }
        out + &self.action("end")
    }

    fn range(&mut self, depth: usize) -> String {
        let over = self.pick(&[
            "$.Values.list",
            "$.Values.map",
            "$.Values.missing",
            "(list 1 2 3)",
            "(until 2)",
            "$.Values.numbers",
        ]);
        let (head, declared) = match self.below(3) {
            0 => (format!("range {over}"), 0),
            1 => (format!("range $e{} := {over}", self.loops), 1),
            _ => (format!("range $i{}, $e{} := {over}", self.loops, self.loops), 2),
        };
        let known = self.variables.len();
        self.variables.extend(["$e", "$i"].iter().take(declared).map(|name| format!("{name}{}", self.loops)));
        let outside = std::mem::replace(&mut self.at_root, false);
        self.loops += 1;
        let mut out = self.action(&head);
        out += &self.list(depth - 1);
        if self.below(4) == 0 {
            let leave = self.pick(&["break", "continue"]);
            let condition = self.pipeline(1);
            out += &self.action(&format!("if {condition}"));
            out += &self.action(leave);
            out += &self.action("end");
            out += self.text();
        }
        self.loops -= 1;
        self.at_root = outside;
        self.variables.truncate(known);
        if self.below(3) == 0 {
            out += &self.action("else");
            out += &self.list(depth - 1);
        }
        out + &self.action("end")
    }

    fn operand(&mut self) -> String {
        match self.below(10) {
            0..=4 => {
                let field =
                    self.pick(&["text", "empty", "number", "flag", "list", "map", "missing", "lines", "large", "half"]);
                format!("$.Values.{field}")
            }
            5 => self.pick(&["\"a b\"", "`raw \\n`", "\"\\t\\\"}}\"", "\"\"", "`}}`", "'a'"]).to_owned(),
            6 => self.pick(&["0", "1", "-3", "12", "0x1F", "1_000", "2.5", "1e3", "0b11", "0o17"]).to_owned(),
            7 => self.pick(&["true", "false"]).to_owned(),
            8 => self.variables.last().cloned().unwrap_or_else(|| "`v`".to_owned()),
            _ => self
                .pick(&["$.Values.map.b", "$.Values.map.a.x", "(index $.Values.list 1)", "(len $.Values.list)"])
                .to_owned(),
        }
    }

    /// Returns a pipeline of functions that both engines have.
    fn pipeline(&mut self, depth: usize) -> String {
        let mut out = match self.below(8) {
            0 => format!("eq $.Values.text {}", self.pick(&["`a b`", "\"x\"", "$.Values.empty"])),
            1 => format!("and {} {}", self.operand(), self.operand()),
            2 => format!("or {} {}", self.operand(), self.operand()),
            3 => format!("not {}", self.operand()),
            4 => "printf \"%v|%s|%t|%d|%q|%5s|%-4v|%x\" 1.5 `t` true 12 `q` `s` `v` 255".to_owned(),
            5 => format!("default {} {}", self.operand(), self.operand()),
            6 if depth > 0 => format!("print ({})", self.pipeline(depth - 1)),
            _ => self.operand(),
        };
        for _ in 0..self.below(3) {
            let function = self.pick(&[
                "quote",
                "toString",
                "toString | trim",
                "toString | upper",
                "toString | trunc 3",
                "toString | trunc -2",
                "toString | indent 2",
                "toString | nindent 2",
                "toString | replace `a` `b`",
                "default `d`",
                "toString | trimSuffix `b`",
                "toString | trimPrefix `a`",
                "toString | title",
                "toString | contains `a`",
                "toString | len",
                "toString | splitList ` ` | join `,`",
                "print",
                "printf `%v`",
                "squote",
                "toString | lower | repeat 2",
                "toString | b64enc",
                "toString | sha256sum",
                "toString | hasPrefix `a`",
                "empty",
                "toJson",
                "toYaml",
                "kindOf",
                "toString | nospace",
                "toString | abbrev 7",
            ]);
            out = format!("{out} | {function}");
        }
        out
    }
}

fn data() -> Value {
    json!({"Values": {
        "text": "a b", "empty": "", "number": 15020, "large": 1_000_620_000_u64, "half": 0.5, "flag": true, "list": ["x", "y"], "numbers": [3, 1],
        "map": {"b": 2, "a": {"deep": null, "x": []}}, "lines": "one\ntwo\n",
    }})
}

#[test]
fn generated_templates_have_the_output_of_go() {
    let Some(mut go) = GoEngine::start() else { return };
    let (count, seed) = (number_from_env("WEIR_TEMPLATES", 2_000), number_from_env("WEIR_TEMPLATES_SEED", 20_261_130));
    let data = data();
    let (mut rendered, mut different) = (0, Vec::new());
    for number in 0..count {
        let mut generator = Generator::new(seed.wrapping_add(number));
        let template = generator.list(3);
        let want = go.render(&json!({"template": template, "data": data}));
        let got = std::panic::catch_unwind(|| render(&template, &data).map_err(|error| error.to_string()))
            .unwrap_or_else(|_| Err("not parsed".to_owned()));
        rendered += u64::from(want.is_ok());
        let same = match (&got, &want) {
            (Ok(got), Ok(want)) => got == want,
            (Err(_), Err(_)) => true,
            _ => false,
        };
        if !same {
            different.push(format!("{template:?}\n  Go   {want:?}\n  Weir {got:?}"));
        }
    }
    eprintln!("{count} templates, {rendered} of them without an error");
    assert!(rendered * 2 > count, "most templates must render to say anything: {rendered} of {count}");
    let shown = different.iter().take(12).cloned().collect::<Vec<_>>().join("\n");
    assert!(different.is_empty(), "{} of {count} differ\n{shown}", different.len());
}
