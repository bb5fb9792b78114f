//! The shape of JSON values: which kinds of values stand where, and the type that holds them all.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field};
use serde::{Deserialize, Serialize};

use super::super::values::Kinds;

/// The values at one place of all lines.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Shape {
    pub(super) kinds: Kinds,
    pub(super) is_object: bool,
    /// The keys of the objects, in the order in which they came.
    pub(super) fields: Vec<(String, Shape)>,
    /// The elements of the lists.
    pub(super) item: Option<Box<Shape>>,
    /// The object that had this key last, by its number.
    pub(super) seen: u64,
}

impl Shape {
    /// The names of the keys.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.fields.iter().map(|(name, _)| name.as_str())
    }

    pub(super) fn field(&self, name: &str) -> Option<&Self> {
        self.fields.iter().find(|(field, _)| field == name).map(|(_, shape)| shape)
    }

    /// Adds the values of another shape.
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

    /// Makes it one for a parser that has seen no object yet.
    pub(super) fn forget_objects(&mut self) {
        self.seen = 0;
        self.fields.iter_mut().for_each(|(_, field)| field.forget_objects());
        self.item.iter_mut().for_each(|item| item.forget_objects());
    }

    /// The type of the values; none if they are of different nature, or objects without any key, for which there is no
    /// type but text.
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
