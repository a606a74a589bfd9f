//! A PLC for tests: coils and holding registers behind Modbus/TCP, and a record of all that was written.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};

#[derive(Debug, Default)]
pub struct Memory {
    pub coils: Vec<bool>,
    pub registers: Vec<u16>,
    /// After each write: which, and all that could be read then.
    pub seen: Vec<(Wrote, [bool; 3], [u16; 10])>,
    pub connections: usize,
    /// Answers every write with this exception.
    pub exception: Option<u8>,
    /// Acknowledges each result with its own sequence as soon as it is written.
    pub acknowledges: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrote {
    Coils,
    Registers,
}

pub struct Plc {
    pub address: SocketAddr,
    memory: Arc<Mutex<Memory>>,
}

impl Plc {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let memory = Memory { coils: vec![false; 16], registers: vec![0; 32], ..Memory::default() };
        let memory = Arc::new(Mutex::new(memory));
        let shared = Arc::clone(&memory);
        // Ends with the test.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                shared.lock().unwrap().connections += 1;
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || serve(stream, &shared));
            }
        });
        Plc { address, memory }
    }

    pub fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap()
    }
}

impl Memory {
    /// OK, NG, READY.
    pub fn lamps(&self) -> [bool; 3] {
        [self.coils[0], self.coils[1], self.coils[2]]
    }

    pub fn words(&self) -> [u16; 10] {
        self.registers[..10].try_into().unwrap()
    }
}

fn serve(mut stream: TcpStream, memory: &Mutex<Memory>) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    loop {
        let mut header = [0; 7];
        stream.read_exact(&mut header).ok()?;
        let length = u16::from_be_bytes([header[4], header[5]]) as usize - 1;
        let mut question = vec![0; length];
        stream.read_exact(&mut question).ok()?;
        let answer = answer(&question, &mut memory.lock().unwrap());
        header[4..6].copy_from_slice(&(answer.len() as u16 + 1).to_be_bytes());
        stream.write_all(&[&header[..], &answer[..]].concat()).ok()?;
    }
}

fn answer(question: &[u8], memory: &mut Memory) -> Vec<u8> {
    let word = |at: usize| u16::from_be_bytes([question[at], question[at + 1]]);
    let (code, from, count) = (question[0], word(1) as usize, word(3) as usize);
    if let (Some(exception), 0x0f | 0x10) = (memory.exception, code) {
        return vec![code | 0x80, exception];
    }
    let wrote = match code {
        0x0f => {
            for i in 0..count {
                memory.coils[from + i] = question[6 + i / 8] >> (i % 8) & 1 == 1;
            }
            Wrote::Coils
        }
        0x10 => {
            for i in 0..count {
                memory.registers[from + i] = word(6 + 2 * i);
            }
            if memory.acknowledges && count > 1 {
                (memory.registers[8], memory.registers[9]) = (memory.registers[0], memory.registers[1]);
            }
            Wrote::Registers
        }
        0x03 => {
            let words = memory.registers[from..from + count].iter().flat_map(|word| word.to_be_bytes());
            return [code, 2 * count as u8].into_iter().chain(words).collect();
        }
        _ => return vec![code | 0x80, 1],
    };
    let (lamps, words) = (memory.lamps(), memory.words());
    memory.seen.push((wrote, lamps, words));
    question[..5].to_vec()
}
