//! Modules and kernels: declarations, scopes, labels and source places. Instructions go to `decode`.

use std::collections::HashMap;
use std::sync::Arc;

use super::decode::{self, Decoded};
use super::instruction::{Instruction, NONE, Op, Type};
use super::lexer::{Token, tokens};
use super::operand::{Names, Operand, Symbol, number, operands};
use super::{Globals, Kernel, Module, Param, ParseError, Place, Variable};

/// Bytes between shared variables that belong to none, so that leaving one is found.
pub const RED_ZONE: usize = 64;

struct Parser<'a> {
    tokens: Vec<Token<'a>>,
    at: usize,
}

/// A declared variable.
struct Declared<'a> {
    name: &'a str,
    ty: Type,
    align: usize,
    /// `None` where the size is left open (dynamic shared memory).
    bytes: Option<usize>,
    values: Vec<u64>,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<&'a str> {
        self.tokens.get(self.at).map(|t| t.text)
    }

    fn line(&self) -> u32 {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(0, |t| t.line)
    }

    fn error<T>(&self, what: impl Into<String>) -> Result<T, ParseError> {
        Err(ParseError { line: self.line(), what: what.into() })
    }

    fn next(&mut self) -> Result<&'a str, ParseError> {
        match self.tokens.get(self.at) {
            Some(token) => {
                self.at += 1;
                Ok(token.text)
            }
            None => self.error("the text ends early"),
        }
    }

    fn expect(&mut self, text: &str) -> Result<(), ParseError> {
        if self.peek() == Some(text) {
            self.at += 1;
            return Ok(());
        }
        self.error(format!("`{text}` is missing before `{}`", self.peek().unwrap_or("the end")))
    }

    fn number(&mut self) -> Result<u64, ParseError> {
        let negative = self.peek() == Some("-");
        if negative {
            self.at += 1;
        }
        match number(self.next()?) {
            Some((v, _)) if negative => Ok((v as i64).wrapping_neg() as u64),
            Some((v, _)) => Ok(v),
            None => {
                self.at -= 1;
                self.error("a number is missing")
            }
        }
    }

    /// The rest of the line.
    fn rest_of_line(&mut self) -> &[Token<'a>] {
        let (start, line) = (self.at, self.tokens.get(self.at.saturating_sub(1)).map_or(0, |t| t.line));
        while self.tokens.get(self.at).is_some_and(|t| t.line == line) {
            self.at += 1;
        }
        &self.tokens[start..self.at]
    }

    fn skip_braces(&mut self) -> Result<(), ParseError> {
        while self.peek() != Some("{") {
            self.next()?;
        }
        let mut depth = 0;
        loop {
            match self.next()? {
                "{" => depth += 1,
                "}" => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return Ok(());
            }
        }
    }

    /// After the space: `.align 4 .b8 name[12] = {...};`
    fn variable(&mut self) -> Result<Declared<'a>, ParseError> {
        let (mut align, mut ty) = (0, None);
        let name = loop {
            match self.next()? {
                ".align" => align = self.number()? as usize,
                word if word.starts_with('.') => match Type::parse(&word[1..]) {
                    Some(t) => ty = Some(t),
                    None if matches!(word, ".ptr" | ".global" | ".shared" | ".const" | ".local") => {}
                    None if matches!(word, ".v2" | ".v4") => {
                        return self.error(format!("a variable of a vector type {word}"));
                    }
                    None => return self.error(format!("`{word}` in a declaration")),
                },
                name => break name,
            }
        };
        let Some(ty) = ty else { return self.error("a variable without a type") };
        let mut count = Some(1);
        while self.peek() == Some("[") {
            self.at += 1;
            if self.peek() == Some("]") {
                count = None;
            } else {
                let n = self.number()? as usize;
                count = count.map(|c| c * n);
            }
            self.expect("]")?;
        }
        let mut values = Vec::new();
        if self.peek() == Some("=") {
            self.at += 1;
            if self.peek() == Some("{") {
                self.at += 1;
                loop {
                    match self.peek() {
                        Some("}") => break,
                        Some("," | "{") => self.at += 1,
                        _ => values.push(self.number()?),
                    }
                }
                self.at += 1;
            } else {
                values.push(self.number()?);
            }
        }
        Ok(Declared { name, ty, align: align.max(ty.bytes()), bytes: count.map(|c| c * ty.bytes()), values })
    }
}

pub fn module(text: &str) -> Result<Module, ParseError> {
    let mut p = Parser { tokens: tokens(text)?, at: 0 };
    let mut symbols: HashMap<&str, Symbol> = HashMap::new();
    let mut module_shared: Vec<(&str, usize, usize)> = Vec::new();
    let mut bytes = Vec::new();
    let mut files = Vec::new();
    let mut kernels = Vec::new();
    while let Some(word) = p.peek() {
        p.at += 1;
        match word {
            ".version" | ".target" | ".address_size" => {
                p.rest_of_line();
            }
            ".file" => {
                let rest = p.rest_of_line();
                if let [id, name, ..] = rest
                    && let Ok(id) = id.text.parse::<u32>()
                {
                    files.push((id, name.text.trim_matches('"').to_owned()));
                }
            }
            ".section" => p.skip_braces()?,
            ".visible" | ".extern" | ".weak" | ".common" => {}
            ".global" | ".const" => {
                let v = p.variable()?;
                p.expect(";")?;
                let Some(size) = v.bytes else { return p.error("a module variable without a size") };
                bytes.resize(bytes.len().next_multiple_of(v.align.max(16)), 0);
                let offset = bytes.len();
                bytes.resize(offset + size, 0);
                for (value, place) in v.values.iter().zip(bytes[offset..].chunks_mut(v.ty.bytes())) {
                    place.copy_from_slice(&value.to_le_bytes()[..v.ty.bytes()]);
                }
                symbols.insert(v.name, Symbol::Global(offset as u64));
            }
            ".shared" => {
                let v = p.variable()?;
                p.expect(";")?;
                match v.bytes {
                    None | Some(0) => {
                        symbols.insert(v.name, Symbol::Dynamic);
                    }
                    Some(size) => module_shared.push((v.name, v.align, size)),
                }
            }
            ".entry" => kernels.push(kernel(&mut p, &symbols, &module_shared)?),
            ".func" => return p.error("a device function that was not inlined (.func)"),
            other => return p.error(format!("`{other}` outside a kernel")),
        }
    }
    let globals = Arc::new(Globals::new(bytes));
    let files = Arc::new(files);
    for kernel in &mut kernels {
        kernel.globals = globals.clone();
        kernel.files = files.clone();
    }
    Ok(Module { kernels })
}

#[derive(Default)]
struct Body<'a> {
    code: Vec<Instruction>,
    shared: Vec<Variable>,
    shared_end: usize,
    local: usize,
    places: Vec<Place>,
    place: Place,
    labels: HashMap<&'a str, u32>,
    tables: HashMap<&'a str, Vec<&'a str>>,
    /// Branches to fix: instruction, its label.
    branches: Vec<(usize, &'a str, u32)>,
}

impl Body<'_> {
    fn add_shared(&mut self, name: &str, align: usize, bytes: usize) -> u64 {
        let offset = self.shared_end.next_multiple_of(align.max(16));
        self.shared.push(Variable { name: name.to_owned(), offset, bytes });
        self.shared_end = offset + bytes + RED_ZONE;
        offset as u64
    }

    fn place(&mut self, ptx_line: u32) -> u32 {
        let place = Place { ptx_line, ..self.place };
        match self.places.last() {
            Some(last) if Place { ptx_line, ..*last } == place && place.line != 0 => {}
            _ => self.places.push(place),
        }
        self.places.len() as u32 - 1
    }
}

fn kernel<'a>(
    p: &mut Parser<'a>,
    symbols: &HashMap<&'a str, Symbol>,
    module_shared: &[(&'a str, usize, usize)],
) -> Result<Kernel, ParseError> {
    let name = p.next()?;
    let mut names = Names { symbols: symbols.clone(), ..Names::default() };
    let mut body = Body { shared_end: RED_ZONE, ..Body::default() };
    // Of the module's shared variables a kernel has those that it names.
    let end = p.tokens[p.at..].iter().position(|t| t.text == ".entry").map_or(p.tokens.len(), |n| p.at + n);
    let text = &p.tokens[p.at..end];
    for &(name, align, bytes) in module_shared.iter().filter(|v| text.iter().any(|t| t.text == v.0)) {
        let offset = body.add_shared(name, align, bytes);
        names.symbols.insert(name, Symbol::Shared(offset));
    }
    let mut params: Vec<Param> = Vec::new();
    if p.peek() == Some("(") {
        p.at += 1;
        while p.peek() != Some(")") {
            p.expect(".param")?;
            let v = p.variable()?;
            let size = v.bytes.unwrap_or(0);
            let end = params.last().map_or(0, |p| p.offset + p.size);
            let offset = end.next_multiple_of(v.align);
            params.push(Param { offset, size });
            names.symbols.insert(v.name, Symbol::Param(offset as u64));
            if p.peek() == Some(",") {
                p.at += 1;
            }
        }
        p.at += 1;
    }
    let mut max_threads = None;
    loop {
        match p.next()? {
            "{" => break,
            ".maxntid" => {
                let mut threads = p.number()? as u32;
                while p.peek() == Some(",") {
                    p.at += 1;
                    threads *= p.number()? as u32;
                }
                max_threads = Some(threads);
            }
            ".minnctapersm" | ".maxnreg" | ".reqntid" => {
                p.number()?;
            }
            "," | ".noreturn" => {}
            word if number(word).is_some() => {}
            other => return p.error(format!("`{other}` before a kernel's body")),
        }
    }
    names.enter();
    let mut depth = 1;
    while depth > 0 {
        statement(p, &mut names, &mut body, &mut depth)?;
    }
    for (index, label, line) in std::mem::take(&mut body.branches) {
        let find = |label: &str| {
            body.labels
                .get(label)
                .copied()
                .ok_or_else(|| ParseError { line, what: format!("no label {label}") })
        };
        match &mut body.code[index].op {
            Op::Branch { to } => *to = find(label)?,
            Op::BranchIndex { table, .. } => {
                let Some(labels) = body.tables.get(label) else {
                    return Err(ParseError { line, what: format!("no branch table {label}") });
                };
                *table = labels.iter().map(|l| find(l)).collect::<Result<_, _>>()?;
            }
            _ => {}
        }
    }
    let place = body.place(p.line());
    body.code.push(Instruction {
        op: Op::Exit,
        guard: NONE,
        negate: false,
        class: super::instruction::Class::Control,
        place,
    });
    names.always();
    Ok(Kernel {
        name: name.to_owned(),
        params,
        max_threads,
        code: body.code,
        words: names.words as usize,
        doubles: names.doubles as usize,
        predicates: names.predicates as usize,
        constants: names.list,
        shared: body.shared,
        dynamic_base: body.shared_end.next_multiple_of(128),
        local_bytes: body.local,
        places: body.places,
        files: Arc::default(),
        globals: Arc::new(Globals { id: 0, bytes: Vec::new() }),
        uses_globals: names.uses_globals,
    })
}

fn statement<'a>(
    p: &mut Parser<'a>,
    names: &mut Names<'a>,
    body: &mut Body<'a>,
    depth: &mut usize,
) -> Result<(), ParseError> {
    let line = p.line();
    let word = p.next()?;
    match word {
        "{" => {
            names.enter();
            *depth += 1;
        }
        "}" => {
            names.leave();
            *depth -= 1;
        }
        ";" => {}
        ".loc" => {
            let rest = p.rest_of_line();
            let value = |i: usize| rest.get(i).and_then(|t: &Token<'_>| t.text.parse::<u32>().ok());
            let inlined = rest.iter().position(|t| t.text == "inlined_at");
            body.place = Place {
                file: value(0).unwrap_or(0),
                line: value(1).unwrap_or(0),
                inlined: inlined.and_then(|i| Some((value(i + 1)?, value(i + 2)?))),
                ptx_line: 0,
            };
        }
        ".pragma" => while p.next()? != ";" {},
        ".reg" => {
            let Some(ty) = p.next()?.get(1..).and_then(Type::parse) else {
                return p.error("a register of an unknown type");
            };
            loop {
                let name = p.next()?;
                let mut count = None;
                if p.peek() == Some("<") {
                    p.at += 1;
                    count = Some(p.number()? as u32);
                    p.expect(">")?;
                }
                names.declare(name, ty, count);
                match p.next()? {
                    "," => {}
                    ";" => break,
                    other => return p.error(format!("`{other}` in a register declaration")),
                }
            }
        }
        ".shared" | ".local" => {
            let v = p.variable()?;
            p.expect(";")?;
            let symbol = match (word, v.bytes) {
                (".shared", Some(bytes)) => Symbol::Shared(body.add_shared(v.name, v.align, bytes)),
                (".local", Some(bytes)) => {
                    let offset = body.local.next_multiple_of(v.align.max(16));
                    body.local = offset + bytes;
                    Symbol::Local(offset as u64)
                }
                _ => return p.error("a variable without a size in a kernel"),
            };
            names.symbols.insert(v.name, symbol);
        }
        label if p.peek() == Some(":") => {
            p.at += 1;
            if p.peek() == Some(".branchtargets") {
                p.at += 1;
                let mut labels = Vec::new();
                loop {
                    match p.next()? {
                        ";" => break,
                        "," => {}
                        target => labels.push(target),
                    }
                }
                body.tables.insert(label, labels);
            } else {
                body.labels.insert(label, body.code.len() as u32);
            }
        }
        _ => {
            let start = p.at - 1;
            while p.peek() != Some(";") {
                p.next()?;
            }
            let all = &p.tokens[start..p.at];
            p.at += 1;
            let describe = |what: String| ParseError {
                line,
                what: format!(
                    "{what} is not supported: {}",
                    all.iter().map(|t| t.text).collect::<Vec<_>>().join(" ")
                ),
            };
            instruction(all, line, names, body).map_err(describe)?;
        }
    }
    Ok(())
}

fn instruction<'a>(
    all: &[Token<'a>],
    line: u32,
    names: &mut Names<'a>,
    body: &mut Body<'a>,
) -> Result<(), String> {
    let (mut rest, mut guard, mut negate) = (all, NONE, false);
    if rest.first().is_some_and(|t| t.text == "@") {
        negate = rest.get(1).is_some_and(|t| t.text == "!");
        let at = 1 + usize::from(negate);
        let name = rest.get(at).ok_or("a guard without a predicate")?.text;
        guard = names.predicate(&Operand::Name(name))?.0;
        rest = &rest[at + 1..];
    }
    let (opcode, rest) = rest.split_first().ok_or("an empty statement")?;
    let operands = operands(rest)?;
    let Decoded { op, class, label } = decode::decode(opcode.text, &operands, names)?;
    if let Some(label) = label {
        body.branches.push((body.code.len(), label, line));
    }
    let place = body.place(line);
    body.code.push(Instruction { op, guard, negate, class, place });
    Ok(())
}
