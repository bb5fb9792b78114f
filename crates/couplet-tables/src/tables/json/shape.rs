//! The shape of JSON values: the kinds of values at each path, and the type that holds them all.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field};
use serde::{Deserialize, Serialize};

use super::super::values::Kinds;

/// The kinds of values at one path across all lines.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Shape {
    pub(super) kinds: Kinds,
    pub(super) is_object: bool,
    /// The keys of the objects, in the order of their first appearance.
    pub(super) fields: Vec<(String, Shape)>,
    /// The merged shape of the list elements.
    pub(super) item: Option<Box<Shape>>,
    /// The number of the last object that had this key.
    pub(super) seen: u64,
}

impl Shape {
    /// Returns the names of the keys.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.fields.iter().map(|(name, _)| name.as_str())
    }

    pub(super) fn field(&self, name: &str) -> Option<&Self> {
        self.fields.iter().find(|(field, _)| field == name).map(|(_, shape)| shape)
    }

    /// Merges another shape into this one.
    pub(super) fn merge(&mut self, other: Self) {
        self.kinds.add(other.kinds);
        self.is_object |= other.is_object;
        for (name, shape) in other.fields {
            match self.fields.iter_mut().find(|(field, _)| *field == name) {
                Some((_, field)) => field.merge(shape),
                None => self.fields.push((name, shape)),
            }
        }
        if let Some(item) = other.item {
            self.item.get_or_insert_default().merge(*item);
        }
    }

    /// Resets the object numbers, for use with a new parser.
    pub(super) fn reset_object_numbers(&mut self) {
        self.seen = 0;
        self.fields.iter_mut().for_each(|(_, field)| field.reset_object_numbers());
        self.item.iter_mut().for_each(|item| item.reset_object_numbers());
    }

    /// Returns the type of the values. Returns none for values of mixed nature and for objects without any key, which
    /// only a text column can hold.
    pub(super) fn data_type(&self) -> Option<DataType> {
        match (&self.item, self.is_object, self.kinds == Kinds::default()) {
            (None, false, _) => Some(self.kinds.data_type()),
            (Some(item), false, true) => Some(DataType::List(Arc::new(Field::new_list_field(item.data_type()?, true)))),
            (None, true, true) if !self.fields.is_empty() => {
                let fields = self.fields.iter().map(|(name, shape)| Some(Field::new(name, shape.data_type()?, true)));
                Some(DataType::Struct(fields.collect::<Option<Vec<_>>>()?.into()))
            }
            _ => None,
        }
    }
}
