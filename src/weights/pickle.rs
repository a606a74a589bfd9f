//! A pickle machine that builds data and nothing else.
//!
//! A pickle is a program for a stack machine whose `GLOBAL` and `REDUCE` can call any function by name.
//! This one knows the handful of names that PyTorch's state dictionaries need; any other stops it, with
//! the name in the error, before anything was built from it.
//!
//! Objects live in one list and refer to each other by index, as pickle's memo makes shared and even
//! cyclic structures. Every instruction appends at most one object, so memory is bounded by the length
//! of the program; walking the result is bounded by the walker (`Machine::flatten`).

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use super::raw::DataType;
use super::{Fault, MAX_TENSORS};

/// Programs longer than this are refused: state dictionaries of a thousand tensors take 100 KiB.
pub(super) const MAX_PROGRAM_BYTES: usize = 64 << 20;
/// Objects that one program may build.
const MAX_OBJECTS: usize = 4 << 20;
/// Dictionaries within dictionaries.
const MAX_DEPTH: usize = 16;
/// Entries visited while flattening: shared containers could otherwise make exponentially many.
const MAX_VISITS: usize = 1 << 20;

/// Index of an object.
pub(super) type Id = usize;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Object {
    None,
    Bool(bool),
    /// Up to 16 bytes: PyTorch's magic number has 10.
    Int(i128),
    Float,
    Str(String),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    Storage(Storage),
    Tensor(TensorRef),
}

/// The only names a pickle may mention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(DataType),
}

impl Global {
    fn named(module: &str, name: &str) -> Result<Self, Fault> {
        Ok(match (module, name) {
            ("collections", "OrderedDict") => Global::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Global::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Global::RebuildParameter,
            ("torch", "HalfStorage") => Global::Storage(DataType::F16),
            ("torch", "BFloat16Storage") => Global::Storage(DataType::Bf16),
            ("torch", "FloatStorage") => Global::Storage(DataType::F32),
            ("torch", "DoubleStorage") => Global::Storage(DataType::F64),
            ("torch", "ByteStorage") => Global::Storage(DataType::U8),
            ("torch", "CharStorage") => Global::Storage(DataType::I8),
            ("torch", "ShortStorage") => Global::Storage(DataType::I16),
            ("torch", "IntStorage") => Global::Storage(DataType::I32),
            ("torch", "LongStorage") => Global::Storage(DataType::I64),
            ("torch", "BoolStorage") => Global::Storage(DataType::Bool),
            _ => return Err(Fault::Code(format!("{module}.{name}").escape_debug().to_string())),
        })
    }
}

/// A storage as the pickle names it; its bytes are elsewhere in the file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Storage {
    pub key: Rc<str>,
    pub dtype: DataType,
    /// First element of this view in the stored block (legacy files only).
    pub offset: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct TensorRef {
    pub storage: Storage,
    /// First element within the storage.
    pub offset: usize,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
}

/// Runs the program at the start of `bytes`; yields the machine, its result, and the program's length.
pub(super) fn run(bytes: &[u8]) -> Result<(Machine<'_>, Id, usize), Fault> {
    let mut machine =
        Machine { input: bytes, at: 0, objects: vec![], stack: vec![], memo: HashMap::new(), tensors: 0 };
    loop {
        if machine.at > MAX_PROGRAM_BYTES || machine.objects.len() > MAX_OBJECTS {
            return Err(Fault::unsupported("its pickle is larger than any weights file needs"));
        }
        if let Some(result) = machine.step()? {
            let length = machine.at;
            return Ok((machine, result, length));
        }
    }
}

enum Slot {
    Object(Id),
    Mark,
}

pub(super) struct Machine<'a> {
    input: &'a [u8],
    at: usize,
    objects: Vec<Object>,
    stack: Vec<Slot>,
    memo: HashMap<u64, Id>,
    tensors: usize,
}

impl<'a> Machine<'a> {
    pub fn object(&self, id: Id) -> &Object {
        // Ids come from `push` alone and objects are never removed.
        &self.objects[id]
    }

    fn wrong(&self, what: impl Into<String>) -> Fault {
        Fault::damaged(format!("its pickle is wrong at byte {}: {}", self.at, what.into()))
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Fault> {
        let rest = self.input.get(self.at..).unwrap_or_default();
        let taken = rest.get(..count).ok_or_else(|| self.wrong("it ends in mid-instruction"))?;
        self.at += count;
        Ok(taken)
    }

    /// A little-endian unsigned number of `count` ≤ 8 bytes.
    fn number(&mut self, count: usize) -> Result<u64, Fault> {
        Ok(self.take(count)?.iter().rev().fold(0, |n, &byte| n << 8 | u64::from(byte)))
    }

    fn length(&mut self, count: usize) -> Result<usize, Fault> {
        let n = self.number(count)?;
        usize::try_from(n).map_err(|_| self.wrong("absurd length"))
    }

    fn text(&mut self, count: usize) -> Result<String, Fault> {
        let bytes = self.take(count)?;
        // Lone surrogates and Python 2 byte strings are not UTF-8; names with them stay readable.
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }

    /// Up to a newline, which is consumed.
    fn line(&mut self) -> Result<String, Fault> {
        let rest = self.input.get(self.at..).unwrap_or_default();
        let end = rest
            .iter()
            .take(1 << 16)
            .position(|&byte| byte == b'\n')
            .ok_or_else(|| self.wrong("a line without end"))?;
        let text = self.text(end)?;
        self.at += 1;
        Ok(text)
    }

    fn push(&mut self, object: Object) {
        self.objects.push(object);
        self.stack.push(Slot::Object(self.objects.len() - 1));
    }

    fn pop(&mut self) -> Result<Id, Fault> {
        match self.stack.pop() {
            Some(Slot::Object(id)) => Ok(id),
            _ => Err(self.wrong("the stack is empty")),
        }
    }

    fn top(&self) -> Result<Id, Fault> {
        match self.stack.last() {
            Some(Slot::Object(id)) => Ok(*id),
            _ => Err(self.wrong("the stack is empty")),
        }
    }

    /// Pops everything above the last mark, and the mark.
    fn pop_to_mark(&mut self) -> Result<Vec<Id>, Fault> {
        let mark = self
            .stack
            .iter()
            .rposition(|slot| matches!(slot, Slot::Mark))
            .ok_or_else(|| self.wrong("no mark"))?;
        let items = self.stack.drain(mark..).filter_map(|slot| match slot {
            Slot::Object(id) => Some(id),
            Slot::Mark => None,
        });
        Ok(items.collect())
    }

    fn pop_tuple(&mut self, count: usize) -> Result<(), Fault> {
        let mut items = (0..count).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
        items.reverse();
        self.push(Object::Tuple(items));
        Ok(())
    }

    fn remember(&mut self, key: u64) -> Result<(), Fault> {
        let id = self.top()?;
        self.memo.insert(key, id);
        Ok(())
    }

    fn recall(&mut self, key: u64) -> Result<(), Fault> {
        let id = *self.memo.get(&key).ok_or_else(|| self.wrong(format!("nothing remembered as {key}")))?;
        self.stack.push(Slot::Object(id));
        Ok(())
    }

    fn append(&mut self, items: Vec<Id>) -> Result<(), Fault> {
        let list = self.top()?;
        match &mut self.objects[list] {
            Object::List(list) => list.extend(items),
            _ => return Err(self.wrong("appends to something that is no list")),
        }
        Ok(())
    }

    fn set_items(&mut self, items: Vec<Id>) -> Result<(), Fault> {
        let dict = self.top()?;
        if !items.len().is_multiple_of(2) {
            return Err(self.wrong("a key without a value"));
        }
        match &mut self.objects[dict] {
            Object::Dict(dict) => dict.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1]))),
            _ => return Err(self.wrong("sets items of something that is no dictionary")),
        }
        Ok(())
    }

    fn decimal<T: std::str::FromStr>(&mut self) -> Result<T, Fault> {
        let line = self.line()?;
        line.trim_end_matches('L').parse().map_err(|_| self.wrong("a number that is none"))
    }

    fn big_int(&mut self, count: usize) -> Result<(), Fault> {
        let bytes = self.take(count)?;
        if count > 16 {
            return Err(self.wrong("an integer of more than 16 bytes"));
        }
        let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let start = if negative { -1i128 } else { 0 };
        let n = bytes.iter().rev().fold(start, |n, &byte| n << 8 | i128::from(byte));
        self.push(Object::Int(n));
        Ok(())
    }

    /// One instruction; the result's id at the end.
    fn step(&mut self) -> Result<Option<Id>, Fault> {
        let code = self.number(1)? as u8;
        match code {
            b'.' => return self.pop().map(Some),
            0x80 => {
                let protocol = self.number(1)?;
                if protocol > 5 {
                    return Err(self.wrong(format!("pickle protocol {protocol} is unknown")));
                }
            }
            // FRAME: a hint for reading ahead.
            0x95 => drop(self.take(8)?),

            b'(' => self.stack.push(Slot::Mark),
            b'0' => drop(self.stack.pop()),
            b'1' => drop(self.pop_to_mark()?),
            b'2' => {
                let id = self.top()?;
                self.stack.push(Slot::Object(id));
            }

            b'N' => self.push(Object::None),
            0x88 => self.push(Object::Bool(true)),
            0x89 => self.push(Object::Bool(false)),
            b'J' => {
                let n = self.number(4)? as u32 as i32;
                self.push(Object::Int(n.into()));
            }
            b'K' | b'M' => {
                let n = self.number(if code == b'K' { 1 } else { 2 })?;
                self.push(Object::Int(n.into()));
            }
            b'I' => match self.line()?.as_str() {
                "00" => self.push(Object::Bool(false)),
                "01" => self.push(Object::Bool(true)),
                digits => {
                    let n = digits.parse().map_err(|_| self.wrong("a number that is none"))?;
                    self.push(Object::Int(n));
                }
            },
            b'L' => {
                let n = self.decimal()?;
                self.push(Object::Int(n));
            }
            0x8a | 0x8b => {
                let count = self.length(if code == 0x8a { 1 } else { 4 })?;
                self.big_int(count)?;
            }
            b'F' => {
                self.decimal::<f64>()?;
                self.push(Object::Float);
            }
            b'G' => {
                self.take(8)?;
                self.push(Object::Float);
            }
            b'U' | 0x8c | b'C' => {
                let count = self.length(1)?;
                let text = self.text(count)?;
                self.push(Object::Str(text));
            }
            b'T' | b'X' | b'B' => {
                let count = self.length(4)?;
                let text = self.text(count)?;
                self.push(Object::Str(text));
            }
            0x8d | 0x8e | 0x96 => {
                let count = self.length(8)?;
                let text = self.text(count)?;
                self.push(Object::Str(text));
            }
            b'S' | b'V' => {
                let text = self.line()?;
                self.push(Object::Str(text.trim_matches(['\'', '"']).to_owned()));
            }

            b')' => self.push(Object::Tuple(vec![])),
            0x85..=0x87 => self.pop_tuple(usize::from(code - 0x84))?,
            b't' => {
                let items = self.pop_to_mark()?;
                self.push(Object::Tuple(items));
            }
            b']' => self.push(Object::List(vec![])),
            b'l' => {
                let items = self.pop_to_mark()?;
                self.push(Object::List(items));
            }
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' => {
                let items = self.pop_to_mark()?;
                self.append(items)?;
            }
            b'}' => self.push(Object::Dict(vec![])),
            b'd' => {
                let items = self.pop_to_mark()?;
                self.push(Object::Dict(vec![]));
                self.set_items(items)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set_items(vec![key, value])?;
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.set_items(items)?;
            }

            b'p' => {
                let key = self.decimal()?;
                self.remember(key)?;
            }
            b'q' | b'r' => {
                let key = self.number(if code == b'q' { 1 } else { 4 })?;
                self.remember(key)?;
            }
            0x94 => self.remember(self.memo.len() as u64)?,
            b'g' => {
                let key = self.decimal()?;
                self.recall(key)?;
            }
            b'h' | b'j' => {
                let key = self.number(if code == b'h' { 1 } else { 4 })?;
                self.recall(key)?;
            }

            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(Object::Global(Global::named(&module, &name)?));
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Object::Str(module), Object::Str(name)) = (self.object(module), self.object(name))
                else {
                    return Err(self.wrong("a global without a name"));
                };
                let global = Global::named(module, name)?;
                self.push(Object::Global(global));
            }
            // INST: a class by name, at once instantiated.
            b'i' => {
                let (module, name) = (self.line()?, self.line()?);
                return Err(Fault::Code(format!("{module}.{name}").escape_debug().to_string()));
            }
            // EXT: a name hidden in a registry of the writer's process.
            0x82..=0x84 => return Err(Fault::Code("an extension registered by its writer".into())),
            b'R' | 0x81 => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                let built = self.reduce(function, arguments)?;
                self.tensors += usize::from(matches!(built, Object::Tensor(_)));
                if self.tensors > 2 * MAX_TENSORS {
                    return Err(Fault::unsupported(format!("it holds more than {MAX_TENSORS} tensors")));
                }
                self.push(built);
            }
            b'b' => {
                // PyTorch hangs `_metadata` (module versions) onto its ordered dictionaries.
                self.pop()?;
                if !matches!(self.object(self.top()?), Object::Dict(_)) {
                    return Err(self.wrong("sets attributes of something that is no dictionary"));
                }
            }
            b'Q' => {
                let id = self.pop()?;
                let storage = self.storage(id)?;
                self.push(Object::Storage(storage));
            }
            _ => return Err(self.wrong(format!("instruction {code:#04x} has no place in a weights file"))),
        }
        Ok(None)
    }

    fn items(&self, id: Id) -> Result<&[Id], Fault> {
        match self.object(id) {
            Object::Tuple(items) | Object::List(items) => Ok(items),
            _ => Err(self.wrong("a tuple is missing")),
        }
    }

    fn size(&self, id: Id) -> Result<usize, Fault> {
        match self.object(id) {
            Object::Int(n) => usize::try_from(*n).map_err(|_| self.wrong(format!("the size {n}"))),
            _ => Err(self.wrong("a size is missing")),
        }
    }

    fn sizes(&self, id: Id) -> Result<Vec<usize>, Fault> {
        let items = self.items(id)?;
        // PyTorch's own limit is 64 axes.
        if items.len() > 64 {
            return Err(self.wrong("a tensor of more than 64 axes"));
        }
        items.iter().map(|&item| self.size(item)).collect()
    }

    /// What the three known callables build.
    fn reduce(&self, function: Id, arguments: Id) -> Result<Object, Fault> {
        let arguments = self.items(arguments)?;
        match (self.object(function), arguments) {
            (Object::Global(Global::OrderedDict), []) => Ok(Object::Dict(vec![])),
            // Python 2 passed the entries: ([[key, value], …],).
            (Object::Global(Global::OrderedDict), &[entries]) => {
                let pairs = self.items(entries)?.iter().map(|&entry| match self.items(entry)? {
                    &[key, value] => Ok((key, value)),
                    _ => Err(self.wrong("a dictionary entry that is no pair")),
                });
                pairs.collect::<Result<_, _>>().map(Object::Dict)
            }
            (Object::Global(Global::RebuildTensor), &[storage, offset, shape, strides, ..]) => {
                let Object::Storage(storage) = self.object(storage) else {
                    return Err(self.wrong("a tensor without a storage"));
                };
                Ok(Object::Tensor(TensorRef {
                    storage: storage.clone(),
                    offset: self.size(offset)?,
                    shape: self.sizes(shape)?,
                    strides: self.sizes(strides)?,
                }))
            }
            (Object::Global(Global::RebuildParameter), &[tensor, ..]) => match self.object(tensor) {
                tensor @ Object::Tensor(_) => Ok(tensor.clone()),
                _ => Err(self.wrong("a parameter without a tensor")),
            },
            _ => Err(self.wrong("calls something that is no known function, or with odd arguments")),
        }
    }

    /// A persistent id: ("storage", type, key, device, elements), in legacy files followed by
    /// None or (view key, first element, elements).
    fn storage(&self, id: Id) -> Result<Storage, Fault> {
        let odd = || self.wrong("a storage that is not described as PyTorch does");
        let items = self.items(id)?;
        let (&[kind, dtype, key, _, _], rest) = items.split_first_chunk::<5>().ok_or_else(odd)?;
        let (Object::Str(kind), Object::Global(Global::Storage(dtype)), Object::Str(key)) =
            (self.object(kind), self.object(dtype), self.object(key))
        else {
            return Err(odd());
        };
        if kind != "storage" || key.len() > 256 {
            return Err(odd());
        }
        let offset = match rest.first().map(|&view| self.object(view)) {
            None | Some(Object::None) => 0,
            Some(Object::Tuple(view)) => self.size(*view.get(1).ok_or_else(odd)?)?,
            Some(_) => return Err(odd()),
        };
        Ok(Storage { key: key.as_str().into(), dtype: *dtype, offset })
    }

    /// Every storage that the program mentions.
    pub fn storages(&self) -> impl Iterator<Item = &Storage> {
        self.objects.iter().filter_map(|object| match object {
            Object::Storage(storage) => Some(storage),
            _ => None,
        })
    }

    /// Every tensor under `root`, by its dotted path. See `super::read_tensors` for the rules.
    pub fn flatten(&self, root: Id) -> Result<BTreeMap<String, &TensorRef>, Fault> {
        let root = ["state_dict", "model_state_dict", "model"]
            .into_iter()
            .find_map(|key| self.entry(root, key).filter(|&id| matches!(self.object(id), Object::Dict(_))))
            .unwrap_or(root);
        let mut found = BTreeMap::new();
        let mut visits = 0;
        self.walk(root, String::new(), 0, &mut visits, &mut found)?;
        if !found.is_empty() && found.keys().all(|key| key.starts_with("module.")) {
            found =
                found.into_iter().map(|(key, tensor)| (key["module.".len()..].to_owned(), tensor)).collect();
        }
        Ok(found)
    }

    fn entry(&self, dict: Id, wanted: &str) -> Option<Id> {
        let Object::Dict(entries) = self.object(dict) else { return None };
        let entry =
            entries.iter().find(|(key, _)| matches!(self.object(*key), Object::Str(key) if key == wanted));
        entry.map(|(_, value)| *value)
    }

    fn walk<'m>(
        &'m self,
        id: Id,
        path: String,
        depth: usize,
        visits: &mut usize,
        found: &mut BTreeMap<String, &'m TensorRef>,
    ) -> Result<(), Fault> {
        *visits += 1;
        if depth > MAX_DEPTH || *visits > MAX_VISITS || found.len() > MAX_TENSORS || path.len() > 1024 {
            return Err(Fault::unsupported("its dictionaries nest too deeply or hold too much"));
        }
        let join = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
        match self.object(id) {
            Object::Tensor(tensor) => {
                found.insert(path, tensor);
            }
            Object::Dict(entries) => {
                for &(key, value) in entries {
                    let key = match self.object(key) {
                        Object::Str(key) => join(key),
                        Object::Int(key) => join(&key.to_string()),
                        _ => continue,
                    };
                    self.walk(value, key, depth + 1, visits, found)?;
                }
            }
            Object::List(items) | Object::Tuple(items) => {
                for (index, &item) in items.iter().enumerate() {
                    self.walk(item, join(&index.to_string()), depth + 1, visits, found)?;
                }
            }
            _ => {}
        }
        Ok(())
    }
}
