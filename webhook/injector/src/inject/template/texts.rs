//! TextSet that include each other, in the template language of Helm's charts: the same engine and functions, and `include`.

use std::sync::{Arc, Weak};

use gotmpl::parse::{DefineNode, Parser};
use gotmpl::{FuncMap, Template as Engine, TemplateError, Value as Data};
use serde_json::Value;

use super::{check, data, functions, reason};

/// A set of texts, each with a name, and what they define for each other.
pub struct TextSet {
    engine: Arc<Engine>,
}

impl TextSet {
    /// Reads texts: pairs of a name and the text.
    ///
    /// # Errors
    /// What is no template, each with the name and the line.
    pub fn parse(texts: &[(&str, &str)]) -> Result<Self, Vec<String>> {
        let mut trees = Vec::new();
        let mut findings = Vec::new();
        for (name, text) in texts {
            match Parser::new(text, "{{", "}}").and_then(Parser::parse) {
                Ok((tree, defines)) => {
                    trees.push(((*name).to_owned(), tree));
                    trees.extend(defines.into_iter().map(|DefineNode { name, body, .. }| (name.to_string(), body)));
                }
                Err(error) => findings.push(format!("{name}: {}", check::syntax(error))),
            }
        }
        if !findings.is_empty() {
            return Err(findings);
        }
        // What is included may include more: the function leads back to the engine that it is part of.
        let engine = Arc::new_cyclic(|engine: &Weak<Engine>| {
            let engine = Weak::clone(engine);
            let include = move |values: &[Data]| {
                let [Data::String(name), given] = values else {
                    return Err(TemplateError::Exec("include: takes the name of a template and a value".to_owned()));
                };
                let engine = engine.upgrade().ok_or_else(|| TemplateError::Exec("include: too late".to_owned()))?;
                engine.execute_template_to_string(name, given).map(|text| Data::String(text.into()))
            };
            let mut all: FuncMap = functions::all();
            all.insert("include".to_owned(), Arc::new(include));
            let engine = Engine::new("").funcs(all);
            trees.into_iter().fold(engine, |engine, (name, tree)| engine.add_parse_tree(&name, tree))
        });
        Ok(Self { engine })
    }

    /// The text of a name, with what is to be filled in.
    ///
    /// # Errors
    /// It fails, also because a text calls `fail`.
    pub fn render(&self, name: &str, values: &Value) -> Result<String, String> {
        let mut text = super::meter::Output::start();
        let done = self.engine.execute_template_fmt(&mut text, name, &data::untyped(values));
        match done {
            Ok(()) => Ok(text.into_text()),
            Err(error) => Err(text.bound_passed().unwrap_or_else(|| reason(error))),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn texts_include_what_others_define_at_any_depth() {
        let texts = TextSet::parse(&[
            ("a", "{{ include \"outer\" . | nindent 2 }}"),
            (
                "_helpers",
                "{{ define \"outer\" }}x: {{ include \"inner\" .n }}{{ end }}{{ define \"inner\" }}<{{ . }}>{{ end }}",
            ),
        ]);
        assert_eq!(texts.unwrap().render("a", &json!({"n": 7})).unwrap(), "\n  x: <7>");
    }

    #[test]
    fn what_is_wrong_is_said_of_all_texts_and_in_the_words_of_fail() {
        let broken = TextSet::parse(&[("a", "\n{{ if }}"), ("b", "{{ x"), ("c", "")]).err().unwrap();
        assert_eq!(broken.len(), 2, "{broken:?}");
        assert!(broken[0].starts_with("a: line 2: "), "{broken:?}");
        let texts = TextSet::parse(&[("a", "{{ fail \"no CA\" }}"), ("b", "{{ include \"nowhere\" . }}")]).unwrap();
        assert_eq!(texts.render("a", &json!({})).unwrap_err(), "no CA");
        assert!(texts.render("b", &json!({})).unwrap_err().contains("nowhere"));
    }
}
