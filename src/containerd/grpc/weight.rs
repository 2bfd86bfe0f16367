//! Estimates the memory that an answer of containerd takes when it is decoded, while its bytes arrive: two bytes can stand
//! for a message of hundreds, and a message of 16 MiB for gigabytes.
//!
//! Pure: no I/O. Knows of each answer only which of its fields are messages and lists.

use containerd_client::services::v1 as api;
use containerd_client::services::v1::snapshots as snap;
use containerd_client::types as kinds;
use k8s_cri::v1 as cri;

use crate::containerd as ours;

/// The limit of what a message takes besides its bytes. A list of 10,000 images with 20 labels each takes 56 MiB.
const MAX_WEIGHT: usize = 64 << 20;

/// The limit of an answer of a call that [`shape`] does not know, in bytes. Such answers have no lists.
const MAX_SMALL: usize = 64 << 10;

/// The size of what precedes a message: its compression, and its length (big-endian).
const PREFIX_LEN: usize = 5;

/// What an entry of a map takes besides its bytes, in a growing table and in the ordered map.
const ENTRY: usize = 224;

/// What the first entry of a map takes in addition: the first node of the ordered map.
const MAP: usize = 544;

/// What a string of a list takes besides its bytes: its place in a growing list, and an allocation.
const ELEMENT: usize = 80;

/// The least that an allocation takes.
const STRING: usize = 32;

/// A kind of message: what one takes besides its bytes, its fields that are messages, and those that are lists of strings.
struct Shape {
    size: usize,
    messages: &'static [(u32, &'static Shape)],
    lists: &'static [u32],
}

const fn shape_of(size: usize, messages: &'static [(u32, &'static Shape)]) -> Shape {
    let lists = &[];
    Shape {
        size,
        messages,
        lists,
    }
}

/// Returns what an element of a list takes: its place in a growing list, what it becomes, and its strings.
const fn element<T, U>(strings: usize) -> usize {
    2 * size_of::<T>() + size_of::<U>() + strings * STRING
}

/// A message without messages and lists in it.
static FLAT: Shape = shape_of(0, &[]);
static MAP_ENTRY: Shape = shape_of(ENTRY, &[]);
static DESCRIPTOR: Shape = shape_of(3 * STRING, &[(5, &MAP_ENTRY)]);
static MOUNT: Shape = Shape {
    size: element::<kinds::Mount, ours::Mount>(3),
    messages: &[],
    lists: &[4],
};

static IMAGE: Shape = shape_of(
    element::<api::Image, ours::Image>(1) + MAP,
    &[(2, &MAP_ENTRY), (3, &DESCRIPTOR)],
);
static BLOB: Shape = shape_of(
    element::<api::Info, ours::Blob>(1) + MAP,
    &[(5, &MAP_ENTRY)],
);
static SNAPSHOT: Shape = shape_of(
    element::<snap::Info, ours::Snapshot>(2) + MAP,
    &[(6, &MAP_ENTRY)],
);
static LEASE: Shape = shape_of(
    element::<api::Lease, ours::Lease>(1) + MAP,
    &[(3, &MAP_ENTRY)],
);
static RESOURCE: Shape = shape_of(element::<api::Resource, ours::Resource>(2), &[]);
static PLATFORM: Shape = shape_of(element::<kinds::Platform, ()>(4), &[]);
static ANY: Shape = shape_of(element::<prost_types::Any, ()>(2), &[]);
static STATUS: Shape = shape_of(STRING, &[(3, &ANY)]);
static PLUGIN: Shape = Shape {
    size: element::<api::Plugin, ours::Snapshotter>(2) + MAP,
    messages: &[(4, &PLATFORM), (5, &MAP_ENTRY), (7, &STATUS)],
    lists: &[3, 6],
};

static POD: Shape = shape_of(
    element::<cri::PodSandbox, (String, cri::PodSandbox)>(5) + 2 * MAP,
    &[(5, &MAP_ENTRY), (6, &MAP_ENTRY)],
);
static CRI_IMAGE: Shape = shape_of(3 * STRING, &[(2, &MAP_ENTRY)]);
static CONTAINER: Shape = shape_of(
    element::<cri::Container, ours::CriContainer>(5) + 2 * MAP,
    &[(4, &CRI_IMAGE), (8, &MAP_ENTRY), (9, &MAP_ENTRY)],
);
static CONDITION: Shape = shape_of(element::<cri::RuntimeCondition, ()>(3), &[]);
static CONDITIONS: Shape = shape_of(0, &[(1, &CONDITION)]);
static HANDLER: Shape = shape_of(element::<cri::RuntimeHandler, ()>(1), &[]);
static FILE_SYSTEM: Shape = shape_of(element::<cri::FilesystemUsage, ()>(1), &[]);

static IMAGES: Shape = shape_of(0, &[(1, &IMAGE)]);
static BLOBS: Shape = shape_of(0, &[(1, &BLOB)]);
static SNAPSHOTS: Shape = shape_of(0, &[(1, &SNAPSHOT)]);
static MOUNTS: Shape = shape_of(0, &[(1, &MOUNT)]);
static LEASES: Shape = shape_of(0, &[(1, &LEASE)]);
static RESOURCES: Shape = shape_of(0, &[(1, &RESOURCE)]);
static PLUGINS: Shape = shape_of(0, &[(1, &PLUGIN)]);
static PODS: Shape = shape_of(0, &[(1, &POD)]);
static CONTAINERS: Shape = shape_of(0, &[(1, &CONTAINER)]);
static CRI_STATUS: Shape = shape_of(0, &[(1, &CONDITIONS), (2, &MAP_ENTRY), (3, &HANDLER)]);
static FILE_SYSTEMS: Shape = shape_of(0, &[(1, &FILE_SYSTEM), (2, &FILE_SYSTEM)]);

/// Returns the shape of the answer of a call whose answer may be larger than [`MAX_SMALL`].
fn shape(path: &str) -> Option<&'static Shape> {
    Some(match path {
        "/containerd.services.images.v1.Images/List"
        | "/containerd.services.images.v1.Images/Get" => &IMAGES,
        "/containerd.services.content.v1.Content/List"
        | "/containerd.services.content.v1.Content/Info"
        | "/containerd.services.content.v1.Content/Update" => &BLOBS,
        "/containerd.services.content.v1.Content/Read"
        | "/containerd.services.events.v1.Events/Subscribe" => &FLAT,
        "/containerd.services.snapshots.v1.Snapshots/List"
        | "/containerd.services.snapshots.v1.Snapshots/Stat"
        | "/containerd.services.snapshots.v1.Snapshots/Update" => &SNAPSHOTS,
        "/containerd.services.snapshots.v1.Snapshots/Prepare"
        | "/containerd.services.snapshots.v1.Snapshots/View"
        | "/containerd.services.snapshots.v1.Snapshots/Mounts" => &MOUNTS,
        "/containerd.services.leases.v1.Leases/List"
        | "/containerd.services.leases.v1.Leases/Create" => &LEASES,
        "/containerd.services.leases.v1.Leases/ListResources" => &RESOURCES,
        "/containerd.services.introspection.v1.Introspection/Plugins" => &PLUGINS,
        "/runtime.v1.RuntimeService/ListPodSandbox" => &PODS,
        "/runtime.v1.RuntimeService/ListContainers" => &CONTAINERS,
        "/runtime.v1.RuntimeService/Status" => &CRI_STATUS,
        "/runtime.v1.ImageService/ImageFsInfo" => &FILE_SYSTEMS,
        _ => return None,
    })
}

/// An answer is not decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error(
        "decoded, it would take more than {} MiB of memory, and a list of 10,000 images with 20 labels each takes 56: is \
         this containerd?",
        MAX_WEIGHT >> 20
    )]
    Heavy,
    #[error("a message of {0} bytes, where at most {MAX_SMALL} are expected: is this containerd?")]
    Long(usize),
    #[error("a message is malformed: is this containerd?")]
    Malformed,
}

/// A message that is open. An inner one may claim to end after its outer one: only the outermost length is checked.
#[derive(Debug, Clone, Copy)]
struct Open {
    shape: &'static Shape,
    /// The place of its end in the outermost message.
    end: usize,
}

impl std::fmt::Debug for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shape").field("size", &self.size).finish()
    }
}

/// What the next bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Tag,
    Number,
    Length(u32),
}

/// Weighs the messages of one answer. Decoding follows the same fields: what is an error here is one there, and an error
/// ends both.
#[derive(Debug)]
pub(super) struct Scale {
    /// `None`: the answer is small.
    shape: Option<&'static Shape>,
    prefix: [u8; PREFIX_LEN],
    seen: usize,
    /// The length of the message, and the place in it.
    length: usize,
    at: usize,
    open: Vec<Open>,
    next: Next,
    /// The bytes of the field that follow.
    skipped: usize,
    number: u64,
    shift: u32,
    weight: usize,
}

impl Scale {
    /// Returns the scale for the answer of the call with this path.
    pub(super) fn of(path: &str) -> Self {
        Self {
            shape: shape(path),
            prefix: [0; PREFIX_LEN],
            seen: 0,
            length: 0,
            at: 0,
            open: Vec::new(),
            next: Next::Tag,
            skipped: 0,
            number: 0,
            shift: 0,
            weight: 0,
        }
    }

    /// Follows the next bytes of the answer.
    pub(super) fn follow(&mut self, mut bytes: &[u8]) -> Result<(), Refused> {
        while let Some((first, rest)) = bytes.split_first() {
            if self.at == self.length {
                self.prefix[self.seen] = *first;
                self.seen += 1;
                bytes = rest;
                if self.seen == PREFIX_LEN {
                    self.begin()?;
                }
                continue;
            }
            // A field that is cut short ends with its message.
            let here = bytes.len().min(self.length - self.at);
            let skipped = self.skipped.min(here);
            if skipped > 0 {
                self.skipped -= skipped;
                self.at += skipped;
                bytes = &bytes[skipped..];
            } else {
                self.at += 1;
                bytes = rest;
                self.take(*first)?;
            }
            self.close();
        }
        Ok(())
    }

    fn begin(&mut self) -> Result<(), Refused> {
        let [_, l0, l1, l2, l3] = self.prefix;
        self.length = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
        (self.seen, self.at, self.weight) = (0, 0, 0);
        (self.skipped, self.number, self.shift) = (0, 0, 0);
        self.next = Next::Tag;
        self.open.clear();
        match self.shape {
            // tonic has the limit of its bytes.
            Some(shape) => {
                let end = self.length;
                self.open.push(Open { shape, end });
                self.close();
            }
            None if self.length > MAX_SMALL => return Err(Refused::Long(self.length)),
            None => self.skipped = self.length,
        }
        Ok(())
    }

    /// Takes a byte of a number: seven bits in each, the lowest first, at most ten bytes.
    fn take(&mut self, byte: u8) -> Result<(), Refused> {
        self.number |= u64::from(byte & 0x7f) << self.shift;
        if byte & 0x80 != 0 {
            self.shift += 7;
            return match self.shift < 64 {
                true => Ok(()),
                false => Err(Refused::Malformed),
            };
        }
        let number = std::mem::take(&mut self.number);
        self.shift = 0;
        match self.next {
            Next::Tag => self.tag(number),
            Next::Number => {
                self.next = Next::Tag;
                Ok(())
            }
            Next::Length(field) => self.field(field, number),
        }
    }

    fn tag(&mut self, tag: u64) -> Result<(), Refused> {
        let field = u32::try_from(tag >> 3).map_err(|_| Refused::Malformed)?;
        match tag & 7 {
            0 => self.next = Next::Number,
            1 => self.skipped = 8,
            2 => self.next = Next::Length(field),
            5 => self.skipped = 4,
            // Groups, which the third version of the language does not have.
            _ => return Err(Refused::Malformed),
        }
        Ok(())
    }

    fn field(&mut self, field: u32, length: u64) -> Result<(), Refused> {
        self.next = Next::Tag;
        let length = usize::try_from(length).map_err(|_| Refused::Malformed)?;
        if length > self.length - self.at {
            return Err(Refused::Malformed);
        }
        let Some(Open { shape, .. }) = self.open.last().copied() else {
            return Err(Refused::Malformed);
        };
        match shape.messages.iter().find(|(n, _)| *n == field) {
            Some((_, shape)) => {
                self.weight += shape.size;
                let end = self.at + length;
                self.open.push(Open { shape, end });
            }
            None => {
                self.skipped = length;
                self.weight += if shape.lists.contains(&field) {
                    ELEMENT
                } else {
                    0
                };
            }
        }
        match self.weight > MAX_WEIGHT {
            true => Err(Refused::Heavy),
            false => Ok(()),
        }
    }

    /// Closes the messages that have ended. A field that is longer than its message is an error of the decoder, after it
    /// has read the field.
    fn close(&mut self) {
        while self.next == Next::Tag
            && self.skipped == 0
            && self.shift == 0
            && self.open.last().is_some_and(|open| open.end <= self.at)
        {
            self.open.pop();
        }
        if self.at == self.length {
            self.open.clear();
            (self.next, self.skipped) = (Next::Tag, 0);
            (self.number, self.shift) = (0, 0);
        }
    }
}

#[cfg(test)]
mod tests;
