//! Rows set aside on disk.

use std::{
    fmt,
    io::{self, BufReader, BufWriter, Read, Seek, Write},
    path::Path,
};

use tempfile::SpooledTempFile;

use crate::data::Row;

/// Up to this many bytes stay in memory: some thousand rows, so that a small drift touches no disk, and little enough that
/// two spools for each of hundreds of fact types do not add up.
const MEMORY_BYTES: usize = 64 << 10;
/// The buffer in front of it.
const BUFFER_BYTES: usize = 16 << 10;

/// Rows in the order they were pushed, each as its length (4 bytes, little-endian) and its bytes, in memory while they are few and
/// then in a file without a name. A spool knows how many rows it holds, so that a lost one is an error.
pub struct Spool {
    file: SpooledTempFile,
    len: u64,
}

impl Spool {
    /// Keeps `rows`, in a file under `folder` when they are many.
    pub fn write(folder: &Path, rows: impl IntoIterator<Item = Row>) -> io::Result<Self> {
        let mut writer = SpoolWriter::new(folder);
        for row in rows {
            writer.push(&row)?;
        }
        writer.finish()
    }

    /// How many rows it holds.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its rows from the first; it may be read again.
    pub fn rows(&mut self) -> io::Result<impl Iterator<Item = io::Result<Row>> + Send> {
        self.file.rewind()?;
        let mut reader = BufReader::with_capacity(BUFFER_BYTES, &mut self.file);
        Ok((0..self.len).map(move |_| read(&mut reader)))
    }
}

impl fmt::Debug for Spool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Spool({} rows)", self.len)
    }
}

/// A spool that is still written to.
pub(super) struct SpoolWriter {
    writer: BufWriter<SpooledTempFile>,
    len: u64,
}

impl SpoolWriter {
    /// Empty.
    pub(super) fn new(folder: &Path) -> Self {
        let file = tempfile::spooled_tempfile_in(MEMORY_BYTES, folder);
        Self { writer: BufWriter::with_capacity(BUFFER_BYTES, file), len: 0 }
    }

    /// Adds a row.
    pub(super) fn push(&mut self, row: &Row) -> io::Result<()> {
        let length = u32::try_from(row.as_bytes().len()).map_err(io::Error::other)?;
        self.writer.write_all(&length.to_le_bytes())?;
        self.writer.write_all(row.as_bytes())?;
        self.len += 1;
        Ok(())
    }

    /// Ends writing.
    pub(super) fn finish(self) -> io::Result<Spool> {
        let file = self.writer.into_inner().map_err(io::IntoInnerError::into_error)?;
        Ok(Spool { file, len: self.len })
    }
}

fn read(reader: &mut impl Read) -> io::Result<Row> {
    let mut length = [0; 4];
    reader.read_exact(&mut length)?;
    let mut bytes = vec![0; u32::from_le_bytes(length) as usize];
    reader.read_exact(&mut bytes)?;
    Row::from_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(count: u32) -> Vec<Row> {
        (0..count).map(|n| Row::from_texts([n.to_string().as_str(), "member"])).collect()
    }

    #[test]
    fn rows_come_back_in_order_and_again() {
        let folder = tempfile::tempdir().expect("a folder");
        for count in [0, 1, 50_000] {
            let mut spool = Spool::write(folder.path(), rows(count)).expect("written");
            assert_eq!((spool.len(), spool.is_empty()), (u64::from(count), count == 0));
            for _ in 0..2 {
                let read: Vec<Row> = spool.rows().expect("rewound").collect::<io::Result<_>>().expect("read");
                assert_eq!(read, rows(count));
            }
        }
    }

    #[test]
    fn few_rows_need_no_disk_and_many_leave_no_name_behind() {
        let missing = Path::new("/nonexistent/folder");
        assert!(Spool::write(missing, rows(100)).is_ok());
        assert!(Spool::write(missing, rows(50_000)).is_err());
        let folder = tempfile::tempdir().expect("a folder");
        let _spool = Spool::write(folder.path(), rows(50_000)).expect("written");
        assert_eq!(std::fs::read_dir(folder.path()).expect("listed").count(), 0);
    }

    #[test]
    fn a_spool_that_lost_rows_is_an_error() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut spool = Spool::write(folder.path(), rows(50_000)).expect("written");
        spool.file.set_len(100_000).expect("cut");
        let read: io::Result<Vec<Row>> = spool.rows().expect("rewound").collect();
        assert_eq!(read.expect_err("rows are missing").kind(), io::ErrorKind::UnexpectedEof);
    }
}
