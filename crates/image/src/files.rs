//! The files of an image: one layer, as a tar file.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use tar::{Builder, EntryType, Header};

/// Directories, programs, texts and links by their paths, without the leading slash.
///
/// All belong to root. Directories that are on the way to something need not be named.
#[derive(Debug, Clone, Default)]
pub struct Files(BTreeMap<String, Entry>);

#[derive(Debug, Clone)]
enum Entry {
    Directory,
    File { content: Vec<u8>, mode: u32 },
    Link(String),
}

impl Files {
    /// An empty directory, to mount something on.
    pub fn directory(&mut self, path: &str) {
        self.parents(path);
        self.0.insert(path.to_owned(), Entry::Directory);
    }

    /// A file that can be run.
    pub fn program(&mut self, path: &str, content: Vec<u8>) {
        self.parents(path);
        self.0.insert(path.to_owned(), Entry::File { content, mode: 0o755 });
    }

    /// A file to read.
    pub fn text(&mut self, path: &str, content: &str) {
        self.parents(path);
        self.0.insert(path.to_owned(), Entry::File { content: content.as_bytes().to_vec(), mode: 0o644 });
    }

    /// A symbolic link.
    pub fn link(&mut self, path: &str, target: &str) {
        self.parents(path);
        self.0.insert(path.to_owned(), Entry::Link(target.to_owned()));
    }

    fn parents(&mut self, path: &str) {
        for (end, _) in path.match_indices('/') {
            self.0.entry(path[..end].to_owned()).or_insert(Entry::Directory);
        }
    }

    /// As a tar file, everything of that time.
    pub(crate) fn tar(&self, time: u64) -> Result<Vec<u8>> {
        let mut tar = Builder::new(Vec::new());
        for (path, entry) in &self.0 {
            let mut header = Header::new_gnu();
            header.set_mtime(time);
            header.set_size(0);
            header.set_uid(0);
            header.set_gid(0);
            let added = match entry {
                Entry::Directory => {
                    header.set_entry_type(EntryType::Directory);
                    header.set_mode(0o755);
                    tar.append_data(&mut header, format!("{path}/"), &[][..])
                }
                Entry::File { content, mode } => {
                    header.set_size(content.len().try_into()?);
                    header.set_mode(*mode);
                    tar.append_data(&mut header, path, content.as_slice())
                }
                Entry::Link(target) => {
                    header.set_entry_type(EntryType::Symlink);
                    header.set_mode(0o777);
                    tar.append_link(&mut header, path, target)
                }
            };
            added.with_context(|| format!("packing {path}"))?;
        }
        Ok(tar.into_inner()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_come_before_what_is_in_them_and_nobody_but_root_owns_anything() {
        let mut files = Files::default();
        files.program("opt/bin/b", vec![1]);
        files.link("opt/bin/a", "b");
        files.text("etc/hint", "text");
        files.directory("opt/bin");
        let tar = files.tar(7).unwrap();
        let mut seen = Vec::new();
        for entry in tar::Archive::new(tar.as_slice()).entries().unwrap() {
            let entry = entry.unwrap();
            let header = entry.header();
            assert_eq!((header.uid().unwrap(), header.gid().unwrap(), header.mtime().unwrap()), (0, 0, 7));
            seen.push((entry.path().unwrap().display().to_string(), header.mode().unwrap()));
        }
        let expected = [
            ("etc/", 0o755),
            ("etc/hint", 0o644),
            ("opt/", 0o755),
            ("opt/bin/", 0o755),
            ("opt/bin/a", 0o777),
            ("opt/bin/b", 0o755),
        ];
        assert_eq!(seen, expected.map(|(path, mode)| (path.to_owned(), mode)));
        assert_eq!(tar, files.tar(7).unwrap(), "the same bytes again");
    }
}
