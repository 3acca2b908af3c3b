//! What a file is, and whether this machine can execute it, without running it.
//!
//! Reads the ELF header, the program headers and one section, `.dormouse`, into which the SDK's
//! `main!` writes UTF-8 lines: `dormouse-sdk <version> protocol <n>`, then a workflow's name per
//! line. Reads ranges of bounded size only, whatever the header claims.

use std::{
    ffi::OsStr,
    fmt,
    fs::File,
    io::{self, Read, Seek},
    os::unix::ffi::OsStrExt,
    path::Path,
};

use dormouse_core::domain::id::{Name, ParseError};
use dormouse_proto::code::{Code, Coded};
use object::{
    Endianness, ReadCache,
    elf::{self, FileHeader64},
    read::elf::{FileHeader as _, ProgramHeader as _, SectionHeader as _},
};

/// The section with the names.
const SECTION: &str = ".dormouse";
/// A thousand names of the longest kind.
const SECTION_MAX: u64 = 256 << 10;
/// Headers of that many sections or segments take 4 MiB at most.
const HEADERS_MAX: usize = 65_000;
/// Longer than any path that a kernel takes.
const INTERPRETER_MAX: u64 = 4096;

/// What an image says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// Its entry points, in the order of `main!`.
    pub workflows: Vec<Name>,
    /// The version of the SDK that it links.
    pub sdk_version: String,
    /// The newest version of the instance protocol that it speaks.
    pub protocol: u32,
    /// What it runs on, as Rust names it: `x86_64`, `aarch64` …
    pub architecture: &'static str,
}

/// Why a file cannot be an image here.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// No program of any Linux.
    #[error("the file is {what}, not a compiled Linux program (ELF); build the workflow for {machine} Linux")]
    NotElf {
        /// What it looks like.
        what: &'static str,
        /// What this machine executes.
        machine: &'static str,
    },
    /// For another kind of machine.
    #[error("the image is built for {image}, this machine executes {machine}; build it for {machine}")]
    Architecture {
        /// What it was built for.
        image: String,
        /// What this machine executes.
        machine: &'static str,
    },
    /// A library, an object file, a core dump.
    #[error("the file is {what}, not a program; give the binary that the linker made")]
    NotExecutable {
        /// What it is.
        what: &'static str,
    },
    /// Its dynamic loader is not installed.
    #[error(
        "the image needs the loader {interpreter}, which this machine has not; link it statically or install it"
    )]
    Interpreter {
        /// The loader's path.
        interpreter: String,
    },
    /// Headers that contradict each other or the file's size.
    #[error("the file begins like an ELF program but is damaged ({what}); copy or build it again")]
    Damaged {
        /// Where.
        what: &'static str,
    },
    /// Some other program.
    #[error(
        "the program is not a Dormouse workflow: link dormouse-sdk and end with dormouse_sdk::main!(...)"
    )]
    NotAWorkflow,
    /// A section that this version does not understand.
    #[error("the image's list of workflows is unreadable ({what}); build it with a released dormouse-sdk")]
    List {
        /// What is wrong.
        what: String,
    },
    /// The file could not be read.
    #[error("the image cannot be read")]
    Read(#[from] io::Error),
}

impl Coded for InspectError {
    fn code(&self) -> Code {
        match self {
            Self::NotElf { .. }
            | Self::Architecture { .. }
            | Self::NotExecutable { .. }
            | Self::Interpreter { .. }
            | Self::Damaged { .. }
            | Self::NotAWorkflow
            | Self::List { .. } => Code::InvalidArgument,
            Self::Read(_) => Code::Internal,
        }
    }
}

/// Looks into a file. Blocking; reads some KiB.
pub fn inspect(file: &File) -> Result<Inspection, InspectError> {
    let mut start = Vec::with_capacity(64);
    let mut reader = file;
    reader.rewind()?;
    reader.take(64).read_to_end(&mut start)?;
    let architecture = recognise(&start)?;
    let data = ReadCache::new(file);
    let header = FileHeader64::<Endianness>::parse(&data).map_err(|_| damaged("its header"))?;
    let endian = header.endian().map_err(|_| damaged("its byte order"))?;
    executable(header, endian)?;
    loader(header, endian, &data)?;
    let text = section(header, endian, &data)?;
    let (sdk_version, protocol, workflows) = list(&text)?;
    Ok(Inspection { workflows, sdk_version, protocol, architecture })
}

fn damaged(what: &'static str) -> InspectError {
    InspectError::Damaged { what }
}

/// The first bytes tell what it is and for whom; `Ok` only for this machine's kind.
fn recognise(start: &[u8]) -> Result<&'static str, InspectError> {
    let machine = std::env::consts::ARCH;
    let what = match start {
        [] => "empty",
        [0x7f, b'E', b'L', b'F', ..] => return recognise_elf(start, machine),
        [b'#', b'!', ..] => "a script",
        [b'M', b'Z', ..] => "a Windows program",
        [0xcf | 0xce, 0xfa, 0xed, 0xfe, ..] | [0xca, 0xfe, 0xba, 0xbe, ..] => "a macOS program",
        [0, b'a', b's', b'm', ..] => "a WebAssembly module",
        [b'!', b'<', b'a', b'r', ..] => "a static library",
        [b'P', b'K', 3, 4, ..] | [0x1f, 0x8b, ..] => "a compressed archive",
        _ => "of no known kind",
    };
    Err(InspectError::NotElf { what, machine })
}

fn recognise_elf(start: &[u8], machine: &'static str) -> Result<&'static str, InspectError> {
    let [class, order, os_abi] = [4, 5, 7].map(|at: usize| start.get(at).copied().unwrap_or(0));
    let (Some(&low), Some(&high)) = (start.get(18), start.get(19)) else {
        return Err(damaged("it ends within its header"));
    };
    let big_endian = order == elf::ELFDATA2MSB;
    let number = if big_endian { u16::from_be_bytes([low, high]) } else { u16::from_le_bytes([low, high]) };
    let bits = if class == elf::ELFCLASS64 { "" } else { "32-bit " };
    let image = Machine { bits, number, big_endian };
    if os_abi != elf::ELFOSABI_NONE && os_abi != elf::ELFOSABI_GNU {
        return Err(InspectError::NotElf { what: "a program for another operating system", machine });
    }
    match image.rust_name() {
        Some(name) if name == machine => Ok(name),
        _ => Err(InspectError::Architecture { image: image.to_string(), machine }),
    }
}

/// Whom a file is for, by its header.
struct Machine {
    bits: &'static str,
    number: u16,
    big_endian: bool,
}

impl Machine {
    /// Only what Rust compiles for under that name.
    fn rust_name(&self) -> Option<&'static str> {
        match (self.number, self.bits, self.big_endian) {
            (62, "", false) => Some("x86_64"),
            (183, "", false) => Some("aarch64"),
            (243, "", false) => Some("riscv64"),
            (258, "", false) => Some("loongarch64"),
            (21, "", _) => Some("powerpc64"),
            (22, "", true) => Some("s390x"),
            _ => None,
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.number {
            3 => "x86",
            8 => "mips",
            20 | 21 => "powerpc",
            22 => "s390",
            40 => "arm",
            62 => "x86_64",
            183 => "aarch64",
            243 => "riscv",
            258 => "loongarch",
            other => return write!(f, "{}machine number {other}", self.bits),
        };
        let order = if self.big_endian { " (big-endian)" } else { "" };
        write!(f, "{}{name}{order}", self.bits)
    }
}

fn executable(header: &FileHeader64<Endianness>, endian: Endianness) -> Result<(), InspectError> {
    let what = match header.e_type(endian) {
        elf::ET_EXEC => return Ok(()),
        // A shared library has no entry point; a position-independent program has one.
        elf::ET_DYN if header.e_entry(endian) != 0 => return Ok(()),
        elf::ET_DYN => "a shared library",
        elf::ET_REL => "an object file",
        elf::ET_CORE => "a core dump",
        _ => "an ELF file of an unknown type",
    };
    Err(InspectError::NotExecutable { what })
}

fn loader(
    header: &FileHeader64<Endianness>,
    endian: Endianness,
    data: &ReadCache<&File>,
) -> Result<(), InspectError> {
    // 0xffff: the number stands elsewhere; no program has that many.
    if usize::from(header.e_phnum(endian)) > HEADERS_MAX {
        return Err(damaged("too many program headers"));
    }
    let segments = header.program_headers(endian, data).map_err(|_| damaged("its program headers"))?;
    for segment in segments.iter().filter(|segment| segment.p_type(endian) == elf::PT_INTERP) {
        if segment.p_filesz(endian) > INTERPRETER_MAX {
            return Err(damaged("its loader's name"));
        }
        let bytes = segment.data(endian, data).map_err(|()| damaged("its loader's name"))?;
        let name = bytes.strip_suffix(b"\0").unwrap_or(bytes);
        let path = Path::new(OsStr::from_bytes(name));
        if !path.is_file() {
            return Err(InspectError::Interpreter { interpreter: path.display().to_string() });
        }
    }
    Ok(())
}

fn section(
    header: &FileHeader64<Endianness>,
    endian: Endianness,
    data: &ReadCache<&File>,
) -> Result<String, InspectError> {
    // Zero with an offset: the number stands elsewhere; no program has that many.
    let count = usize::from(header.e_shnum(endian));
    if count > HEADERS_MAX || (count == 0 && header.e_shoff(endian) != 0) {
        return Err(damaged("too many sections"));
    }
    let sections = header.sections(endian, data).map_err(|_| damaged("its sections"))?;
    let Some((_, found)) = sections.section_by_name(endian, SECTION.as_bytes()) else {
        return Err(InspectError::NotAWorkflow);
    };
    if found.sh_size(endian) > SECTION_MAX {
        return Err(InspectError::List { what: format!("longer than {SECTION_MAX} bytes") });
    }
    let bytes = found.data(endian, data).map_err(|_| damaged("its list of workflows"))?;
    String::from_utf8(bytes.to_vec()).map_err(|_| InspectError::List { what: "not UTF-8".to_owned() })
}

/// Words after the known ones are left to later versions. Padding (NUL) and empty lines between
/// pieces that the linker joined are skipped.
fn list(text: &str) -> Result<(String, u32, Vec<Name>), InspectError> {
    let refused = |what: &str| InspectError::List { what: what.to_owned() };
    let mut lines = text.split(['\n', '\0']).filter(|line| !line.is_empty());
    let first = lines.next().ok_or_else(|| refused("it is empty"))?;
    let words: Vec<&str> = first.split_ascii_whitespace().collect();
    let ["dormouse-sdk", version, "protocol", protocol, ..] = words[..] else {
        return Err(refused("its first line is not `dormouse-sdk <version> protocol <n>`"));
    };
    let protocol = protocol.parse().map_err(|_| refused("its protocol is no number"))?;
    let names: Result<Vec<Name>, ParseError> = lines.map(|line| Name::parse("workflow", line)).collect();
    let names = names.map_err(|e| refused(&e.to_string()))?;
    if names.is_empty() {
        return Err(refused("it names no workflow"));
    }
    Ok((version.to_owned(), protocol, names))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn refusal(bytes: &[u8]) -> String {
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(bytes).expect("written");
        inspect(&file).expect_err("this is no image").to_string()
    }

    /// This test program itself, with some bytes changed.
    fn own(changes: &[(usize, &[u8])]) -> Vec<u8> {
        let mut bytes = std::fs::read(std::env::current_exe().expect("a path")).expect("readable");
        for (at, new) in changes {
            bytes[*at..at + new.len()].copy_from_slice(new);
        }
        bytes
    }

    #[test]
    fn what_is_no_program_is_named() {
        assert!(refusal(b"").contains("empty"));
        assert!(refusal(b"#!/bin/sh\n").contains("a script"));
        assert!(refusal(b"MZ\x90\0").contains("a Windows program"));
        assert!(refusal(b"hello").contains("of no known kind"));
        assert!(refusal(b"\x7fELF").contains("damaged"));
        assert!(refusal(&own(&[])[..4096]).contains("damaged"), "cut off");
    }

    #[test]
    fn another_machine_is_named_with_this_one() {
        let machine = std::env::consts::ARCH;
        assert_eq!(
            refusal(&own(&[(18, &22_u16.to_le_bytes())])),
            format!("the image is built for s390, this machine executes {machine}; build it for {machine}")
        );
        assert!(refusal(&own(&[(4, &[1])])).contains("built for 32-bit"));
        assert!(refusal(&own(&[(7, &[9])])).contains("another operating system"));
        assert!(refusal(&own(&[(16, &1_u16.to_le_bytes())])).contains("an object file"));
        assert!(refusal(&own(&[(24, &[0; 8])])).contains("a shared library"));
    }

    #[test]
    fn a_missing_loader_and_a_missing_list_are_told() {
        let mut bytes = own(&[]);
        assert!(refusal(&bytes).contains("link dormouse-sdk"));
        let at = bytes.windows(4).position(|window| window == b"/lib").expect("a loader");
        bytes[at + 1] = b'n';
        assert!(refusal(&bytes).contains("needs the loader /nib"));
    }

    #[test]
    fn headers_that_lie_about_their_size_are_refused_without_taking_memory() {
        for at in [32, 40] {
            assert!(refusal(&own(&[(at, &[0xff; 8])])).contains("damaged"), "offset at {at}");
        }
        assert!(refusal(&own(&[(60, &[0, 0])])).contains("too many sections"));
    }

    #[test]
    fn the_list_is_read_and_later_words_are_left_alone() {
        let read = list("dormouse-sdk 0.1.0 protocol 1 more\norder\nfixity audit\n\0\0").expect("a list");
        let names: Vec<_> = read.2.iter().map(Name::as_str).collect();
        assert_eq!((read.0.as_str(), read.1, names), ("0.1.0", 1, vec!["order", "fixity audit"]));
        let start = "dormouse-sdk 1 protocol";
        for bad in
            ["", "sdk 1\nx", &format!("{start} x\na"), &format!("{start} 1"), &format!("{start} 1\na\tb")]
        {
            assert!(list(bad).is_err(), "{bad:?} was taken");
        }
    }
}
