//! Two hosts in one process: a bridge each, segments, and processes' ends of connections, which do what the shim does.
//!
//! `unsafe` is allowed here to view a process's mapping.
#![allow(unsafe_code)]
#![allow(dead_code, reason = "each program uses its part")]

use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fabric::endpoint::{Endpoint, Event, Settings};
use fabric::provider::Fabric;
use memmap2::{MmapOptions, MmapRaw};
use nic_coordinator::bridge::{Bridge, Far, LinkId, Local, Outside, Over, SegmentMemory, Speaker};
use ring::atomic::{Ordering, light_barrier};
use ring::segment::{
    self, Direction, FAR_RING_BYTES, RING_BYTES, SLOTS, Segment, Side, segment_bytes, state,
};
use ring::shared::Region;
use ring::stream::{self, Reader, RingBytes, Violation, Writer};
use ring::urgent;
use ring::wake::{self, SleepWord};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

/// No wait here needs a second; a machine under load may make it many.
pub const WAIT_MAX: Duration = Duration::from_secs(120);

/// Counts what a bridge asks for.
#[derive(Debug, Default)]
pub struct Asked {
    pub wakes: u64,
    pub rings: u64,
    pub urgent: u64,
    pub barriers: u64,
}

impl Outside for Asked {
    fn wake(&mut self, _: &SegmentMemory, _: &SleepWord) {
        self.wakes += 1;
    }
    fn ring(&mut self, _: &SegmentMemory, _: u32, _: u32) {
        self.rings += 1;
    }
    fn ring_urgent(&mut self, _: &SegmentMemory, _: u32) {
        self.urgent += 1;
    }
    fn heavy_barrier(&mut self) {
        self.barriers += 1;
        rustix::thread::membarrier(rustix::thread::MembarrierCommand::GlobalExpedited).unwrap();
    }
}

/// A segment of a host, as both of its sides have it.
struct Shared {
    bridge: Arc<SegmentMemory>,
    /// The process's mapping.
    process: Arc<(MmapRaw, Region)>,
}

impl Shared {
    /// The first one has short rings, all others have long ones.
    fn new(number: u32) -> Shared {
        let memfd: OwnedFd =
            memfd_create("bridge-test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        let ring_bytes = if number == 0 { RING_BYTES } else { FAR_RING_BYTES };
        let bytes = segment_bytes(ring_bytes);
        ftruncate(&memfd, bytes as u64).unwrap();
        fcntl_add_seals(&memfd, SealFlags::SHRINK).unwrap();
        let map = MmapOptions::new().len(bytes).map_raw(&memfd).unwrap();
        // SAFETY: mapped, page-aligned, that long; the mapping stays beside the region.
        let region = unsafe { Region::new(NonNull::new(map.as_mut_ptr()).unwrap(), bytes) };
        segment::format(Segment::over(region).unwrap().header, number, ring_bytes);
        Shared { bridge: SegmentMemory::map(&memfd).unwrap(), process: Arc::new((map, region)) }
    }
}

/// A host: its bridge, and its segments.
pub struct Host {
    pub bridge: Bridge,
    pub link: LinkId,
    pub asked: Asked,
    fabric: Fabric,
    side: u32,
    segments: Vec<Shared>,
}

impl Host {
    fn new(fabric: Fabric, endpoint: Endpoint, receives: usize, side: u32) -> Host {
        let mut bridge = Bridge::new();
        let link = bridge.add_link(endpoint, u32::try_from(receives).unwrap());
        Host { bridge, link, asked: Asked::default(), fabric, side, segments: Vec::new() }
    }

    /// Opens connection `at` of this host: its number, what the other host needs, and the process's end.
    pub fn open(&mut self, at: usize, generation: u32) -> (u32, Far, Process) {
        let (segment, slot) = (at / usize::from(SLOTS), u16::try_from(at % usize::from(SLOTS)).unwrap());
        while self.segments.len() <= segment {
            self.segments.push(Shared::new(u32::try_from(self.segments.len()).unwrap()));
        }
        let shared = &self.segments[segment];
        let rings = shared.bridge.register(&self.fabric, slot).unwrap();
        let remote = rings.remote();
        let local = Local { segment: shared.bridge.clone(), slot, side: self.side, generation, rings };
        let number = self.bridge.open(local).unwrap();
        let process = Process::new(shared.process.clone(), slot, self.side, generation);
        (number, Far { connection: number, rings: remote }, process)
    }

    pub fn poll(&mut self, now_us: u64) -> bool {
        self.bridge.poll(now_us, &mut self.asked)
    }
}

/// Two hosts with a link.
pub struct Rig {
    pub hosts: [Host; 2],
    start: Instant,
}

/// A process's end of a connection, and the number that its bridge has given it.
pub type End = (u32, Process);

/// Two connected endpoints.
pub fn endpoints(here: &Fabric, there: &Fabric, settings: &Settings) -> (Endpoint, Endpoint) {
    let mut listener = there.listen(0).unwrap();
    let mut client = here.connect(listener.address().unwrap(), settings, &[]).unwrap();
    let start = Instant::now();
    let mut server = loop {
        assert_eq!(client.event().unwrap(), None);
        if let Some(incoming) = listener.poll().unwrap() {
            break incoming.accept(settings, &[]).unwrap();
        }
        assert!(start.elapsed() < WAIT_MAX);
    };
    // Either needs the other one's to go on.
    let mut connected = [false; 2];
    while connected != [true; 2] {
        for (endpoint, connected) in [&mut client, &mut server].into_iter().zip(&mut connected) {
            *connected |= matches!(endpoint.event().unwrap(), Some(Event::Connected(_)));
        }
        assert!(start.elapsed() < WAIT_MAX);
    }
    (client, server)
}

pub fn open_fabric() -> Fabric {
    let provider = std::env::var("FABRIC_PROVIDER").unwrap_or_else(|_| "tcp".into());
    let address = std::env::var("FABRIC_ADDRESS").map_or([127, 0, 0, 1].into(), |text| text.parse().unwrap());
    Fabric::open(&provider, address).unwrap()
}

impl Rig {
    pub fn new() -> Rig {
        Rig::with(&Settings { message_bytes: 16 * 1024, ..Settings::default() })
    }

    pub fn with(settings: &Settings) -> Rig {
        rustix::thread::membarrier(rustix::thread::MembarrierCommand::RegisterGlobalExpedited).unwrap();
        let (here, there) = (open_fabric(), open_fabric());
        let (client, server) = endpoints(&here, &there, settings);
        let receives = [client.receives(), server.receives()];
        let hosts = [Host::new(here, client, receives[1], 0), Host::new(there, server, receives[0], 1)];
        Rig { hosts, start: Instant::now() }
    }

    /// A connection in place `at` of both hosts, with different generations.
    pub fn connect(&mut self, at: usize) -> [End; 2] {
        let [here, there] = &mut self.hosts;
        let (number, far, process) = here.open(at, 7);
        let (other_number, other_far, other_process) = there.open(at, 9);
        assert!(there.bridge.join(other_number, there.link, far, Speaker::Them));
        assert!(here.bridge.join(number, here.link, other_far, Speaker::Us));
        [(number, process), (other_number, other_process)]
    }

    /// One round of both.
    pub fn turn(&mut self) {
        let now = u64::try_from(self.start.elapsed().as_micros()).unwrap();
        for host in &mut self.hosts {
            host.poll(now);
        }
    }

    /// Rounds until `done` says something.
    pub fn until<T>(&mut self, what: &str, mut done: impl FnMut(&mut Rig) -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            if let Some(result) = done(self) {
                return result;
            }
            self.turn();
            assert!(start.elapsed() < WAIT_MAX, "{what} takes too long");
        }
    }

    /// Rounds for as long as anything could be told late, and enough of them if other programs have the processors.
    pub fn settle(&mut self) {
        let start = Instant::now();
        let mut rounds = 0;
        while start.elapsed() < Duration::from_millis(20) || rounds < 100 {
            self.turn();
            rounds += 1;
        }
    }

    /// What is over on either host, and how.
    pub fn over(&mut self) -> [Vec<(u32, Over)>; 2] {
        let [here, there] = &mut self.hosts;
        [here, there].map(|host| std::iter::from_fn(|| host.bridge.next_over()).collect())
    }
}

/// A process's end.
pub struct Process {
    memory: Arc<(MmapRaw, Region)>,
    slot: u16,
    side: u32,
    generation: u32,
    pub w: Writer,
    pub r: Reader,
}

impl Process {
    fn new(memory: Arc<(MmapRaw, Region)>, slot: u16, side: u32, generation: u32) -> Process {
        let process = Process { memory, slot, side, generation, w: Writer::default(), r: Reader::default() };
        stream::open(process.out_ring(), process.out(), generation);
        process
    }

    fn segment(&self) -> Segment<'_> {
        Segment::over(self.memory.1).unwrap()
    }
    pub fn out(&self) -> &Direction {
        &self.segment().slots[usize::from(self.slot)].directions[self.side as usize]
    }
    pub fn input(&self) -> &Direction {
        &self.segment().slots[usize::from(self.slot)].directions[1 - self.side as usize]
    }
    pub fn out_ring(&self) -> RingBytes {
        self.segment().ring(self.slot, self.side).unwrap()
    }
    pub fn input_ring(&self) -> RingBytes {
        self.segment().ring(self.slot, 1 - self.side).unwrap()
    }
    fn theirs(&self) -> &Side {
        self.segment().side(1 - self.side).unwrap()
    }

    /// Leaves news, as the shim does after a publication in what it writes.
    pub fn notify_reader(&self) {
        light_barrier();
        let watch = wake::lane(self.out().rx_watch.load(Ordering::Relaxed));
        let _ = self.theirs().leave_news(watch, self.slot);
    }

    /// The same in what it reads.
    pub fn notify_writer(&self, consumed: Option<u64>) {
        light_barrier();
        let input = self.input();
        if input.tx_watch.load(Ordering::Relaxed) != 0
            && consumed.is_none_or(|consumed| consumed >= input.tx_wake_at.load(Ordering::Relaxed))
        {
            let watch = wake::lane(input.tx_watch.swap(0, Ordering::AcqRel));
            let _ = self.theirs().leave_news(watch, self.slot);
        }
    }

    /// Writes as much as fits. How much that was.
    pub fn write(&mut self, bytes: &[u8]) -> usize {
        let mut done = 0;
        while done < bytes.len() {
            let ring = self.out_ring();
            let mut w = self.w;
            let span =
                stream::reserve(ring, self.out(), &mut w, bytes.len() - done).expect("an honest bridge");
            self.w = w;
            let Some(span) = span else { break };
            // SAFETY: a slice of that length.
            unsafe { ring.copy_in(span.at, bytes[done..].as_ptr(), span.len) };
            stream::commit(ring, &mut self.w, span.len).unwrap();
            done += span.len;
            self.notify_reader();
        }
        done
    }

    pub fn write_urgent(&mut self, byte: u8) {
        let ring = self.out_ring();
        let mut w = self.w;
        let span = stream::reserve(ring, self.out(), &mut w, 1).unwrap().expect("room");
        urgent::announce(self.out(), &w, byte);
        // SAFETY: one byte.
        unsafe { ring.copy_in(span.at, &raw const byte, 1) };
        stream::commit_urgent(ring, &mut w).unwrap();
        self.w = w;
        self.notify_reader();
    }

    /// Reads at most `max` bytes of what is there.
    pub fn read(&mut self, max: usize) -> Vec<u8> {
        self.try_read(max).expect("an honest bridge")
    }

    pub fn try_read(&mut self, max: usize) -> Result<Vec<u8>, Violation> {
        let mut got = Vec::new();
        if self.r == Reader::default() && !stream::is_open(self.input(), self.generation) {
            return Ok(got);
        }
        while got.len() < max {
            let ring = self.input_ring();
            let mut r = self.r;
            let Some(span) = stream::next(ring, &mut r)? else { break };
            let n = span.len.min(max - got.len());
            let at = got.len();
            got.resize(at + n, 0);
            // SAFETY: a slice of that length.
            unsafe { ring.copy_out(span.at, got[at..].as_mut_ptr(), n) };
            stream::take(&mut r, n);
            self.r = r;
            let consumed = stream::release(self.input(), &self.r);
            self.notify_writer(Some(consumed));
        }
        Ok(got)
    }

    /// Reads into `into`, without keeping anything: for measurements. How many bytes there were.
    pub fn read_into(&mut self, into: &mut [u8]) -> usize {
        let mut done = 0;
        if self.r == Reader::default() && !stream::is_open(self.input(), self.generation) {
            return 0;
        }
        while done < into.len() {
            let ring = self.input_ring();
            let mut r = self.r;
            let Some(span) = stream::next(ring, &mut r).expect("an honest bridge") else { break };
            let n = span.len.min(into.len() - done);
            // SAFETY: a slice of at least that length.
            unsafe { ring.copy_out(span.at, into[done..].as_mut_ptr(), n) };
            stream::take(&mut r, n);
            self.r = r;
            done += n;
            let consumed = stream::release(self.input(), &self.r);
            self.notify_writer(Some(consumed));
        }
        done
    }

    pub fn input_state(&self) -> u32 {
        self.input().state.load(Ordering::Acquire)
    }
    /// Nobody reads what we write.
    pub fn reader_is_gone(&self) -> bool {
        self.out().reader_closed.load(Ordering::Relaxed) & !segment::READER_SHUT == self.generation
    }

    /// shutdown(2).
    pub fn finish(&self) {
        self.out().state.store(state::FIN, Ordering::Release);
        self.notify_reader();
    }
    pub fn shut_reading(&self) {
        self.input().reader_closed.store(self.generation | segment::READER_SHUT, Ordering::Relaxed);
        self.notify_writer(None);
    }
    /// close(2): what is unread makes it a reset.
    pub fn close(&mut self) {
        let reset = !self.try_read(1).is_ok_and(|bytes| bytes.is_empty());
        self.input().reader_closed.store(self.generation, Ordering::Relaxed);
        let end = match (self.out().state.load(Ordering::Relaxed), reset) {
            (state::OPEN, false) => state::FIN,
            (state::OPEN, true) => state::RST,
            (state::FIN, true) if self.input_state() == state::OPEN => state::FIN_RST,
            (ended, _) => ended,
        };
        self.out().state.store(end, Ordering::Release);
        self.notify_reader();
        self.notify_writer(None);
    }
}

/// Random numbers from a seed.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() >> 11).unwrap() % end
    }
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next().to_le_bytes()[3]).collect()
    }
}
