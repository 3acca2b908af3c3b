//! Every statement of the store, read from its sources: what the compiler makes of `stmt!`, made
//! again from the tokens. So a statement that somebody adds is judged without being listed, and
//! one that cannot be read fails the test instead of being overlooked.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    str::FromStr as _,
};

use proc_macro2::{TokenStream, TokenTree};

/// A statement and where it stands.
pub(crate) struct Statement {
    /// `FILE NAME`, the name being the constant's; with a number where several are made under one.
    pub(crate) name: String,
    /// None: it is only for the other database.
    pub(crate) sqlite: Option<String>,
    pub(crate) postgres: Option<String>,
}

/// The text of a constant of the store.
pub(crate) fn text(file: &str, name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/store").join(file);
    let tokens = tokens(&std::fs::read_to_string(path).expect("a source file"));
    let at = tokens.iter().position(|token| token.to_string() == name).expect("the constant is there");
    tokens[at..].iter().find_map(literal).expect("it is a text")
}

/// All statements below `core/src/store`.
pub(crate) fn statements() -> Vec<Statement> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/store");
    let mut files = Vec::new();
    walk(&root, &mut files);
    files.sort();
    let sources: Vec<(String, Vec<TokenTree>)> = files
        .iter()
        .map(|path| {
            let name = path.strip_prefix(&root).expect("below it").display().to_string();
            (name, tokens(&std::fs::read_to_string(path).expect("a source file")))
        })
        .collect();
    let mut everywhere = Macros::new();
    for (_, tokens) in &sources {
        macros(tokens, &mut everywhere);
    }
    let fragments = sources.iter().find_map(|(_, tokens)| fragments(tokens)).expect("sql.rs has FRAGMENTS");
    let mut found = Vec::new();
    for (name, tokens) in &sources {
        let mut here = everywhere.clone(); // several files have a macro of the same name
        macros(tokens, &mut here);
        let mut reader = Reader { file: name, macros: &here, fragments: &fragments, found: &mut found };
        reader.read(tokens, "");
    }
    found
}

fn walk(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).expect("a directory of sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            walk(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

fn tokens(text: &str) -> Vec<TokenTree> {
    TokenStream::from_str(text).expect("it compiles, so it has tokens").into_iter().collect()
}

fn inside(group: &proc_macro2::Group) -> Vec<TokenTree> {
    group.stream().into_iter().collect()
}

/// Each arm of a macro: its pattern and what it becomes.
type Macros = HashMap<String, Vec<(Vec<TokenTree>, Vec<TokenTree>)>>;

/// The macros that are declared in these tokens.
fn macros(tokens: &[TokenTree], found: &mut Macros) {
    for (at, token) in tokens.iter().enumerate() {
        let TokenTree::Group(group) = token else { continue };
        let name = at.checked_sub(1).map(|before| tokens[before].to_string());
        if at >= 3 && tokens[at - 3].to_string() == "macro_rules" {
            let body = inside(group);
            let groups = body.iter().filter_map(|token| match token {
                TokenTree::Group(group) => Some(inside(group)),
                _ => None,
            });
            let groups: Vec<_> = groups.collect();
            let arms = groups.chunks_exact(2).map(|arm| (arm[0].clone(), arm[1].clone())).collect();
            found.insert(name.unwrap_or_default(), arms);
        } else {
            macros(&inside(group), found);
        }
    }
}

/// `FRAGMENTS` of sql.rs: name, on SQLite, on PostgreSQL.
fn fragments(tokens: &[TokenTree]) -> Option<Vec<[String; 3]>> {
    let at = tokens.iter().position(|token| token.to_string() == "FRAGMENTS")?;
    let list =
        tokens[at..].iter().skip_while(|token| token.to_string() != "=").find_map(|token| match token {
            TokenTree::Group(group) => Some(inside(group)),
            _ => None,
        })?;
    let rows = list.iter().filter_map(|token| match token {
        TokenTree::Group(row) => Some(row),
        _ => None,
    });
    Some(
        rows.map(|row| {
            let texts: Vec<_> = inside(row).iter().filter_map(literal).collect();
            texts.try_into().expect("a fragment and what it means on both")
        })
        .collect(),
    )
}

/// The value of a string literal.
fn literal(token: &TokenTree) -> Option<String> {
    let TokenTree::Literal(literal) = token else { return None };
    let text = literal.to_string();
    let text = text.strip_prefix('"')?.strip_suffix('"')?;
    let (mut value, mut rest) = (String::new(), text.chars());
    while let Some(c) = rest.next() {
        match (c, if c == '\\' { rest.next() } else { None }) {
            ('\\', Some('\n')) => rest = rest.as_str().trim_start().chars(),
            ('\\', Some('n')) => value.push('\n'),
            ('\\', Some(escaped)) => value.push(escaped),
            (plain, _) => value.push(plain),
        }
    }
    Some(value)
}

struct Reader<'a> {
    file: &'a str,
    macros: &'a Macros,
    fragments: &'a [[String; 3]],
    found: &'a mut Vec<Statement>,
}

impl Reader<'_> {
    /// Finds what makes statements; `name` is the constant's whose value these tokens are.
    fn read(&mut self, tokens: &[TokenTree], name: &str) {
        let mut name = name.to_owned();
        for (at, token) in tokens.iter().enumerate() {
            match token {
                TokenTree::Ident(ident) if at > 0 && tokens[at - 1].to_string() == "const" => {
                    name = ident.to_string();
                }
                TokenTree::Group(group) => {
                    let call = at.checked_sub(2).map(|at| &tokens[at..]).and_then(called);
                    match call.as_deref() {
                        _ if at >= 3 && tokens[at - 3].to_string() == "macro_rules" => {}
                        // A text of one dialect alone stands in a constant that is called so.
                        Some("concat") if name == "SQLITE" => {
                            self.statement(&tokens[at - 2..=at], &tokens[at + 1..], &name);
                        }
                        Some("stmt") => self.statement(&tokens[at - 2..=at], &tokens[at + 1..], &name),
                        Some(call) if self.makes_statements(call) => {
                            let given = parts(&inside(group));
                            let expanded = self.macros[call].iter().find_map(|arm| expand(arm, &given));
                            let expanded = expanded.unwrap_or_else(|| unreadable(self.file, &name));
                            self.read(&expanded, &name);
                        }
                        _ => self.read(&inside(group), &name),
                    }
                }
                _ => {}
            }
        }
    }

    /// Whether a macro comes to `stmt!`, itself or by others.
    fn makes_statements(&self, name: &str) -> bool {
        let calls = |body: &[TokenTree]| self.calls_stmt(body);
        self.macros.get(name).is_some_and(|arms| arms.iter().any(|(_, body)| calls(body)))
    }

    fn calls_stmt(&self, body: &[TokenTree]) -> bool {
        let here =
            body.windows(3).filter_map(called).any(|name| name == "stmt" || self.makes_statements(&name));
        here || body.iter().any(|token| match token {
            TokenTree::Group(group) => self.calls_stmt(&inside(group)),
            _ => false,
        })
    }

    fn statement(&mut self, call: &[TokenTree], behind: &[TokenTree], constant: &str) {
        let name = format!("{} {constant}", self.file);
        let text = self.text(call).unwrap_or_else(|| unreadable(self.file, constant));
        let n = self.found.iter().filter(|other| other.name.split(" #").next() == Some(&name)).count();
        let name = if n == 0 { name } else { format!("{name} #{}", n + 1) };
        // `stmt!(…).postgres`: the other database has a text of its own.
        let only = match behind {
            [TokenTree::Punct(dot), TokenTree::Ident(field), ..] if dot.as_char() == '.' => field.to_string(),
            _ => constant.to_lowercase(),
        };
        let on = |which: usize, not_only: &str| (only != not_only).then(|| self.dialect(&text, which));
        self.found.push(Statement { sqlite: on(1, "postgres"), postgres: on(2, "sqlite"), name });
    }

    fn dialect(&self, text: &str, which: usize) -> String {
        self.fragments.iter().fold(text.to_owned(), |text, row| text.replace(&row[0], &row[which]))
    }

    /// What literals, `concat!` and the store's macros come to.
    fn text(&self, tokens: &[TokenTree]) -> Option<String> {
        match tokens {
            [token @ TokenTree::Literal(_)] => literal(token),
            [TokenTree::Group(group)] => self.text(&inside(group)),
            [.., TokenTree::Group(group)] => {
                let (name, given) = (called(&tokens[tokens.len() - 3..])?, parts(&inside(group)));
                match name.as_str() {
                    "stmt" => self.text(&given.concat()),
                    "concat" => given.iter().map(|part| self.text(part)).collect(),
                    _ => self.macros.get(&name)?.iter().find_map(|arm| self.text(&expand(arm, &given)?)),
                }
            }
            _ => None,
        }
    }
}

fn unreadable(file: &str, name: &str) -> ! {
    panic!("{file} {name}: this test cannot read how it is made; teach it, or make it more simply")
}

/// The name in `name ! (…)`.
fn called(tokens: &[TokenTree]) -> Option<String> {
    match tokens {
        [TokenTree::Ident(name), TokenTree::Punct(bang), TokenTree::Group(_), ..]
            if bang.as_char() == '!' =>
        {
            Some(name.to_string())
        }
        _ => None,
    }
}

/// What stands between the commas.
fn parts(tokens: &[TokenTree]) -> Vec<Vec<TokenTree>> {
    let comma = |token: &TokenTree| matches!(token, TokenTree::Punct(punct) if punct.as_char() == ',');
    tokens.split(comma).filter(|part| !part.is_empty()).map(<[_]>::to_vec).collect()
}

/// An arm of a macro whose arguments are `$name:literal`, with these given.
fn expand(
    (pattern, body): &(Vec<TokenTree>, Vec<TokenTree>),
    given: &[Vec<TokenTree>],
) -> Option<Vec<TokenTree>> {
    let names: Vec<String> =
        parts(pattern).iter().filter_map(|part| Some(part.get(1)?.to_string())).collect();
    (names.len() == given.len()).then(|| substitute(body, &names, given))
}

fn substitute(body: &[TokenTree], names: &[String], given: &[Vec<TokenTree>]) -> Vec<TokenTree> {
    let mut out = Vec::new();
    let mut rest = body.iter().peekable();
    while let Some(token) = rest.next() {
        match token {
            TokenTree::Punct(dollar) if dollar.as_char() == '$' => {
                let name = rest.next().map(ToString::to_string).unwrap_or_default();
                let which = names.iter().position(|known| *known == name);
                out.extend(which.map_or(&[][..], |which| &given[which]).iter().cloned());
            }
            TokenTree::Group(group) => {
                let inner = substitute(&inside(group), names, given).into_iter().collect();
                out.push(proc_macro2::Group::new(group.delimiter(), inner).into());
            }
            other => out.push(other.clone()),
        }
    }
    out
}
