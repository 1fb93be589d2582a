//! Templates that include each other, with the engine and functions of custom templates and Helm's `include` and `lookup`.

use std::sync::{Arc, Weak};

use gotmpl::parse::{DefineNode, Parser};
use gotmpl::{FuncMap, Template as Engine, TemplateError, Value as Data};
use serde_json::Value;

use super::{check, data, functions, reason};

/// A set of named templates that share their definitions, as the files of a Helm chart.
pub struct TemplateSet {
    engine: Arc<Engine>,
}

impl TemplateSet {
    /// Parses templates from pairs of name and text.
    ///
    /// # Errors
    /// Every template with a syntax error, with name and line.
    pub fn parse(templates: &[(&str, &str)]) -> Result<Self, Vec<String>> {
        let mut trees = Vec::new();
        let mut errors = Vec::new();
        for (name, text) in templates {
            match Parser::new(text, "{{", "}}").and_then(Parser::parse) {
                Ok((tree, defines)) => {
                    trees.push(((*name).to_owned(), tree));
                    trees.extend(defines.into_iter().map(|DefineNode { name, body, .. }| (name.to_string(), body)));
                }
                Err(error) => errors.push(format!("{name}: {}", check::format_syntax_error(error))),
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        // An included template may include others, so the function refers to the engine that it is part of.
        let engine = Arc::new_cyclic(|engine: &Weak<Engine>| {
            let engine = Weak::clone(engine);
            let include = move |values: &[Data]| {
                let [Data::String(name), given] = values else {
                    return Err(TemplateError::Exec("include: requires the name of a template and a value".to_owned()));
                };
                let engine = engine
                    .upgrade()
                    .ok_or_else(|| TemplateError::Exec("include: the template set was dropped".to_owned()))?;
                engine.execute_template_to_string(name, given).map(|text| Data::String(text.into()))
            };
            let mut all: FuncMap = functions::all();
            all.insert("include".to_owned(), Arc::new(include));
            // Without a cluster, as in `helm template`.
            all.insert("lookup".to_owned(), Arc::new(|_: &[Data]| Ok(Data::Map(Arc::default()))));
            let engine = Engine::new("").funcs(all);
            trees.into_iter().fold(engine, |engine, (name, tree)| engine.add_parse_tree(&name, tree))
        });
        Ok(Self { engine })
    }

    /// Renders the template `name` with `values` as its data.
    ///
    /// # Errors
    /// The template fails, for example by calling `fail`, or exceeds a limit.
    pub fn render(&self, name: &str, values: &Value) -> Result<String, String> {
        let mut output = super::limits::Output::start(super::RenderOptions::default());
        match self.engine.execute_template_fmt(&mut output, name, &data::untyped(values)) {
            Ok(()) => Ok(output.into_text()),
            Err(error) => Err(output.exceeded_limit().unwrap_or_else(|| reason(error))),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn templates_include_definitions_of_others() {
        let templates = TemplateSet::parse(&[
            ("a", "{{ include \"outer\" . | nindent 2 }}"),
            (
                "_helpers",
                "{{ define \"outer\" }}x: {{ include \"inner\" .n }}{{ end }}{{ define \"inner\" }}<{{ . }}>{{ end }}",
            ),
        ]);
        assert_eq!(templates.unwrap().render("a", &json!({"n": 7})).unwrap(), "\n  x: <7>");
    }

    #[test]
    fn lookup_finds_nothing() {
        let text = "{{ lookup \"v1\" \"Namespace\" \"\" \"a\" | dig \"metadata\" \"name\" \"none\" }}";
        assert_eq!(TemplateSet::parse(&[("a", text)]).unwrap().render("a", &json!({})).unwrap(), "none");
    }

    #[test]
    fn errors_cover_all_templates_and_keep_the_text_of_fail() {
        let broken = TemplateSet::parse(&[("a", "\n{{ if }}"), ("b", "{{ x"), ("c", "")]).err().unwrap();
        assert_eq!(broken.len(), 2, "{broken:?}");
        assert!(broken[0].starts_with("a: line 2: "), "{broken:?}");
        let templates =
            TemplateSet::parse(&[("a", "{{ fail \"no CA\" }}"), ("b", "{{ include \"nowhere\" . }}")]).unwrap();
        assert_eq!(templates.render("a", &json!({})).unwrap_err(), "no CA");
        assert!(templates.render("b", &json!({})).unwrap_err().contains("nowhere"));
    }
}
