//! Writes the `newc` cpio archive that the kernel unpacks as its initramfs
//! (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::{
    collections::BTreeSet,
    io::{self, Write},
};

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;

/// An archive that is being written. Missing parent folders are added;
/// a name that was written before is skipped.
pub struct Archive<W> {
    out: W,
    seen: BTreeSet<String>,
}

impl<W: Write> Archive<W> {
    pub fn new(out: W) -> Self {
        Self { out, seen: BTreeSet::new() }
    }

    pub fn dir(&mut self, path: &str) -> io::Result<()> {
        self.entry(path, DIRECTORY | 0o755, b"")
    }

    pub fn file(&mut self, path: &str, mode: u32, data: &[u8]) -> io::Result<()> {
        self.entry(path, REGULAR | mode, data)
    }

    pub fn symlink(&mut self, path: &str, to: &str) -> io::Result<()> {
        self.entry(path, SYMLINK | 0o777, to.as_bytes())
    }

    /// Writes the closing entry and returns the writer.
    pub fn finish(mut self) -> io::Result<W> {
        self.write("TRAILER!!!", 0, b"")?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn entry(&mut self, path: &str, mode: u32, data: &[u8]) -> io::Result<()> {
        let path = path.trim_matches('/');
        if self.seen.contains(path) {
            return Ok(());
        }
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.dir(parent)?;
        }
        self.seen.insert(path.to_owned());
        self.write(path, mode, data)
    }

    fn write(&mut self, path: &str, mode: u32, data: &[u8]) -> io::Result<()> {
        let size = u32::try_from(data.len())
            .map_err(|_| io::Error::other(format!("{path} is too large for a cpio archive")))?;
        // Distinct inode numbers: with equal ones the kernel would make the files hard links of each other.
        let (ino, nlink) = (self.seen.len(), 1);
        let header = format!(
            "070701{ino:08x}{mode:08x}{uid:08x}{gid:08x}{nlink:08x}{mtime:08x}{size:08x}\
             {zero:08x}{zero:08x}{zero:08x}{zero:08x}{namesize:08x}{zero:08x}",
            uid = 0,
            gid = 0,
            mtime = 0,
            zero = 0,
            namesize = path.len() + 1,
        );
        self.out.write_all(header.as_bytes())?;
        self.out.write_all(path.as_bytes())?;
        self.out.write_all(b"\0")?;
        self.pad(header.len() + path.len() + 1)?;
        self.out.write_all(data)?;
        self.pad(data.len())
    }

    /// Pads names and data to a multiple of four bytes.
    fn pad(&mut self, written: usize) -> io::Result<()> {
        self.out.write_all(&b"\0\0\0"[..written.wrapping_neg() % 4])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (name, mode, data) of every entry.
    fn read(mut archive: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        loop {
            let field = |n: usize| {
                let text = std::str::from_utf8(&archive[6 + n * 8..14 + n * 8]).expect("ASCII");
                u32::from_str_radix(text, 16).expect("hexadecimal")
            };
            assert_eq!(&archive[..6], b"070701");
            let (mode, size, namesize) = (field(1), field(6) as usize, field(11) as usize);
            let name = String::from_utf8(archive[110..110 + namesize - 1].to_vec()).expect("UTF-8");
            assert_eq!(archive[110 + namesize - 1], 0);
            let data = (110 + namesize).next_multiple_of(4);
            if name == "TRAILER!!!" {
                assert_eq!(archive.len(), data);
                return entries;
            }
            entries.push((name, mode, archive[data..data + size].to_vec()));
            archive = &archive[(data + size).next_multiple_of(4)..];
        }
    }

    #[test]
    fn round_trip() {
        let mut archive = Archive::new(Vec::new());
        archive.file("/etc/a/motd", 0o644, b"hello").expect("memory");
        archive.symlink("bin", "usr/bin").expect("memory");
        archive.dir("/etc/a").expect("memory");
        archive.file("/etc/a/motd", 0o644, b"twice").expect("memory");
        let bytes = archive.finish().expect("memory");
        let want = [
            ("etc", DIRECTORY | 0o755, ""),
            ("etc/a", DIRECTORY | 0o755, ""),
            ("etc/a/motd", REGULAR | 0o644, "hello"),
            ("bin", SYMLINK | 0o777, "usr/bin"),
        ];
        let want = want.map(|(n, m, d)| (n.to_owned(), m, d.as_bytes().to_vec()));
        assert_eq!(read(&bytes), want);
    }
}
