//! The table of connections: found by their ports or by the token of their socket.

use std::collections::HashMap;

use super::connection::{Connection, Key};

/// Most connections at a time, those included that only deliver their last bytes.
pub const MAX_CONNECTIONS: usize = 1024;

/// Connections by slot; a token is a slot and how often it was used, so that a late event cannot hit a
/// connection that took the slot over.
#[derive(Debug, Default)]
pub struct Connections {
    slots: Vec<Slot>,
    free: Vec<u16>,
    by_key: HashMap<Key, u32>,
}

#[derive(Debug)]
struct Slot {
    generation: u16,
    connection: Option<Box<Connection>>,
}

impl Connections {
    /// Adds what `build` makes for a token; `None` if the table is full or `build` refuses.
    pub fn insert(
        &mut self,
        key: Key,
        build: impl FnOnce(u32) -> Option<Connection>,
    ) -> Option<u32> {
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.slots.len() < MAX_CONNECTIONS => {
                let index = u16::try_from(self.slots.len()).ok()?;
                self.slots.push(Slot {
                    generation: 0,
                    connection: None,
                });
                index
            }
            None => return None,
        };
        let slot = &mut self.slots[usize::from(index)];
        let token = u32::from(slot.generation) << 16 | u32::from(index);
        match build(token) {
            Some(connection) => {
                slot.connection = Some(Box::new(connection));
                self.by_key.insert(key, token);
                Some(token)
            }
            None => {
                self.free.push(index);
                None
            }
        }
    }

    /// The token of the connection that the guest knows by `key`.
    pub fn find(&self, key: Key) -> Option<u32> {
        self.by_key.get(&key).copied()
    }

    /// The connection of `token`, if it is still there.
    pub fn get(&mut self, token: u32) -> Option<&mut Connection> {
        let (index, generation) = split(token);
        self.slots
            .get_mut(index)
            .filter(|slot| slot.generation == generation)?
            .connection
            .as_deref_mut()
    }

    /// Makes the guest's `key` mean nothing, while the connection stays.
    pub fn forget(&mut self, key: Key) {
        self.by_key.remove(&key);
    }

    /// Takes the connection of `token` out.
    pub fn remove(&mut self, token: u32) -> Option<Box<Connection>> {
        let (index, generation) = split(token);
        let slot = self
            .slots
            .get_mut(index)
            .filter(|slot| slot.generation == generation)?;
        let connection = slot.connection.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(u16::try_from(index).ok()?);
        if self.by_key.get(&connection.key()) == Some(&token) {
            self.by_key.remove(&connection.key());
        }
        Some(connection)
    }

    /// The tokens of all connections.
    pub fn tokens(&self) -> Vec<u32> {
        (0_u32..)
            .zip(&self.slots)
            .filter(|(_, slot)| slot.connection.is_some())
            .map(|(index, slot)| u32::from(slot.generation) << 16 | index)
            .collect()
    }

    /// All connections.
    pub fn iter(&self) -> impl Iterator<Item = &Connection> {
        self.slots
            .iter()
            .filter_map(|slot| slot.connection.as_deref())
    }
}

fn split(token: u32) -> (usize, u16) {
    let [high, low, slot_high, slot_low] = token.to_be_bytes();
    (
        usize::from(u16::from_be_bytes([slot_high, slot_low])),
        u16::from_be_bytes([high, low]),
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::devices::{event_loop::EventLoop, vsock::packet::Header};

    #[test]
    fn a_late_event_does_not_hit_the_next_connection() {
        let registry = EventLoop::new().unwrap().registry(0);
        let mut connections = Connections::default();
        let insert = |connections: &mut Connections| {
            let key = Key { guest: 1, host: 2 };
            let (socket, _) = UnixStream::pair().unwrap();
            connections
                .insert(key, |token| {
                    Connection::accept(key, token, &Header::default(), socket, &registry).ok()
                })
                .unwrap()
        };
        let first = insert(&mut connections);
        assert!(connections.get(first).is_some());
        assert!(connections.remove(first).is_some());
        let second = insert(&mut connections);
        assert!(connections.get(first).is_none());
        assert!(connections.remove(first).is_none());
        assert!(connections.get(second).is_some());
        assert_eq!(connections.tokens(), [second]);
    }
}
