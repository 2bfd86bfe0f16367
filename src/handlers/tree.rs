//! Merges configuration files key by key. Each value has the file that it is from.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use toml::{Table, Value};

/// Nested tables with values as leaves. An array is one value.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Tree(BTreeMap<String, Node>);

#[derive(Clone, Debug, PartialEq)]
enum Node {
    Table(Tree),
    Value(Value, Arc<Path>),
}

impl Tree {
    /// Returns the tree of one file.
    pub(super) fn new(table: Table, path: &Arc<Path>) -> Self {
        let node = |value| match value {
            Value::Table(table) => Node::Table(Self::new(table, path)),
            value => Node::Value(value, path.clone()),
        };
        let nodes = table.into_iter().map(|(key, value)| (key, node(value)));
        Self(nodes.collect())
    }

    /// Returns the value under these keys and its file.
    pub(super) fn value(&self, keys: &[&str]) -> Option<(&Value, &Path)> {
        let (last, tables) = keys.split_last()?;
        match self.table(tables)?.0.get(*last)? {
            Node::Value(value, path) => Some((value, path)),
            Node::Table(_) => None,
        }
    }

    /// Returns the text under these keys and its file.
    pub(super) fn text(&self, keys: &[&str]) -> Option<(&str, &Path)> {
        let (value, path) = self.value(keys)?;
        Some((value.as_str()?, path))
    }

    /// Returns the table under these keys; without keys the tree itself.
    pub(super) fn table(&self, keys: &[&str]) -> Option<&Self> {
        keys.iter()
            .try_fold(self, |tree, key| match tree.0.get(*key)? {
                Node::Table(table) => Some(table),
                Node::Value(..) => None,
            })
    }

    /// Returns the table of this key, and makes it if there is none.
    pub(super) fn table_mut(&mut self, key: &str) -> &mut Self {
        let node = self
            .0
            .entry(key.to_owned())
            .or_insert(Node::Table(Self::default()));
        if let Node::Value(..) = node {
            *node = Node::Table(Self::default());
        }
        match node {
            Node::Table(table) => table,
            Node::Value(..) => unreachable!("it was replaced"),
        }
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Removes what is under a key and returns it as a tree with this key.
    pub(super) fn take(&mut self, key: &str) -> Self {
        let mut taken = Self::default();
        if let Some((key, node)) = self.0.remove_entry(key) {
            taken.0.insert(key, node);
        }
        taken
    }

    /// Renames a key.
    pub(super) fn rename(&mut self, from: &str, to: &str) {
        if let Some(node) = self.0.remove(from) {
            self.0.insert(to.to_owned(), node);
        }
    }

    /// Replaces what is under this key by that of `other`, if `other` has the key.
    pub(super) fn replace(&mut self, key: &str, other: &Self) {
        if let Some(node) = other.0.get(key) {
            self.0.insert(key.to_owned(), node.clone());
        }
    }

    /// Adds what `other` has under this key, if this tree does not have the key.
    pub(super) fn supply(&mut self, key: &str, other: &Self) {
        if !self.0.contains_key(key) {
            self.replace(key, other);
        }
    }

    /// Merges a later file into this tree: tables key by key, any other value as a whole.
    pub(super) fn overlay(&mut self, later: Self) {
        for (key, node) in later.0 {
            match (self.0.get_mut(&key), node) {
                (Some(Node::Table(table)), Node::Table(later)) => table.overlay(later),
                (_, node) => _ = self.0.insert(key, node),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(text: &str, path: &str) -> Tree {
        Tree::new(text.parse().expect("TOML"), &Path::new(path).into())
    }

    #[test]
    fn a_later_file_changes_only_its_own_values() {
        let mut all = tree("[a]\nb = 1\nc = [1]\n[a.d]\ne = 'x'", "/1");
        all.overlay(tree("[a]\nc = [2]\n[a.d]\nf = 'y'\n", "/2"));
        let one = Value::Integer(1);
        assert_eq!(all.value(&["a", "b"]), Some((&one, Path::new("/1"))));
        let c = all.value(&["a", "c"]).expect("c");
        assert_eq!(
            (c.0.as_array().map(Vec::len), c.1),
            (Some(1), Path::new("/2"))
        );
        assert_eq!(all.text(&["a", "d", "e"]), Some(("x", Path::new("/1"))));
        assert_eq!(all.text(&["a", "d", "f"]), Some(("y", Path::new("/2"))));
        assert_eq!(all.text(&["a", "d"]), None);
        assert_eq!(all.text(&["a", "b"]), None, "no text");
        all.overlay(tree("a = 1", "/3"));
        assert_eq!(all.value(&["a"]), Some((&one, Path::new("/3"))));
        assert_eq!(all.table(&["a"]), None);
    }

    #[test]
    fn tables_are_taken_renamed_and_supplied() {
        let mut all = tree("[a]\nx = 1\n[b]\ny = 2", "/1");
        let a = all.take("a");
        assert_eq!(all.keys().collect::<Vec<_>>(), ["b"]);
        all.rename("b", "c");
        all.table_mut("c")
            .supply("x", &a.table(&["a"]).expect("a").clone());
        assert_eq!(all.table(&["c"]).map(|c| c.keys().count()), Some(2));
        all.table_mut("c").supply("y", &tree("y = 3", "/2"));
        let two = Value::Integer(2);
        assert_eq!(all.value(&["c", "y"]).map(|(y, _)| y), Some(&two));
    }
}
