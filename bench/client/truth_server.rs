// The truth server of the client comparison: every stream sends its chunks at absolute deadlines counted
// from the kernel's stamp of the request's arrival. One thread per connection, std only, Linux x86_64/aarch64.
//
// Build: rustc -O -o truth_server truth_server.rs
// Run:   truth_server PORT TTFT_MS ITL_MS TOKENS_PER_CHUNK REASONING_CHUNKS
// GET /stats: what it really did since the last call, as JSON (microseconds):
//   first: lateness of first chunks, all: lateness of all chunks, gap: gaps between chunks of a stream.
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};
use std::thread;

#[repr(C)]
struct Timespec {
    sec: i64,
    nsec: i64,
}

#[repr(C)]
struct Iovec {
    base: *mut u8,
    len: usize,
}

#[repr(C)]
struct Msghdr {
    name: *mut u8,
    namelen: u32,
    iov: *mut Iovec,
    iovlen: usize,
    control: *mut u8,
    controllen: usize,
    flags: i32,
}

extern "C" {
    fn listen(fd: i32, backlog: i32) -> i32;
    fn setsockopt(fd: i32, level: i32, name: i32, value: *const i32, len: u32) -> i32;
    fn recvmsg(fd: i32, message: *mut Msghdr, flags: i32) -> isize;
    fn clock_gettime(clock: i32, now: *mut Timespec) -> i32;
    fn clock_nanosleep(clock: i32, flags: i32, until: *const Timespec, left: *mut Timespec) -> i32;
    fn prctl(option: i32, value: u64, a: u64, b: u64, c: u64) -> i32;
}

const SOL_SOCKET: i32 = 1;
const SO_TIMESTAMPNS: i32 = 35;
const CLOCK_REALTIME: i32 = 0;
const TIMER_ABSTIME: i32 = 1;
const PR_SET_TIMERSLACK: i32 = 29;

#[derive(Default)]
struct Seen {
    first: Vec<u32>,
    all: Vec<u32>,
    gap: Vec<u32>,
}

#[derive(Clone, Copy)]
struct Timing {
    ttft_ns: i64,
    itl_ns: i64,
    per_chunk: usize,
    reasoning: usize,
}

fn now() -> i64 {
    let mut t = Timespec { sec: 0, nsec: 0 };
    unsafe { clock_gettime(CLOCK_REALTIME, &mut t) };
    t.sec * 1_000_000_000 + t.nsec
}

fn sleep_until(due: i64) {
    let t = Timespec { sec: due / 1_000_000_000, nsec: due % 1_000_000_000 };
    while unsafe { clock_nanosleep(CLOCK_REALTIME, TIMER_ABSTIME, &t, std::ptr::null_mut()) } != 0 {}
}

/// Reads once; returns the bytes' count and the kernel's receive stamp (or now). 0: closed.
fn receive(s: &TcpStream, buf: &mut [u8]) -> (usize, i64) {
    let mut control = [0u64; 16];
    let mut iov = Iovec { base: buf.as_mut_ptr(), len: buf.len() };
    let mut m = Msghdr {
        name: std::ptr::null_mut(),
        namelen: 0,
        iov: &mut iov,
        iovlen: 1,
        control: control.as_mut_ptr() as *mut u8,
        controllen: 128,
        flags: 0,
    };
    let n = unsafe { recvmsg(s.as_raw_fd(), &mut m, 0) };
    // cmsghdr: length (8), level and type (4 + 4), then the timespec
    let stamp = if m.controllen >= 32 { control[2] as i64 * 1_000_000_000 + control[3] as i64 } else { now() };
    (n.max(0) as usize, stamp)
}

/// One request: (request line, body, stamp of its last bytes). None: the connection ended.
fn request(s: &TcpStream, have: &mut Vec<u8>) -> Option<(String, Vec<u8>, i64)> {
    let mut buf = [0u8; 65536];
    let mut stamp = 0;
    loop {
        if let Some(head_end) = have.windows(4).position(|w| w == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&have[..head_end]).to_string();
            let lower = head.to_ascii_lowercase();
            let start = head_end + 4;
            let end = if lower.contains("transfer-encoding: chunked") {
                have[start..].windows(5).position(|w| w == b"0\r\n\r\n").map(|at| start + at + 5)
            } else {
                let length = lower
                    .lines()
                    .find_map(|l| l.strip_prefix("content-length:"))
                    .and_then(|v| v.trim().parse::<usize>().ok())
                    .unwrap_or(0);
                if have.len() >= start + length { Some(start + length) } else { None }
            };
            if let Some(end) = end {
                let body = have[start..end].to_vec();
                have.drain(..end);
                return Some((head.lines().next().unwrap_or("").to_string(), body, stamp));
            }
        }
        let (n, at) = receive(s, &mut buf);
        if n == 0 {
            return None;
        }
        stamp = at;
        have.extend_from_slice(&buf[..n]);
    }
}

fn number(body: &str, key: &str) -> Option<usize> {
    let rest = &body[body.find(key)? + key.len()..];
    let digits: String =
        rest.chars().skip_while(|c| !c.is_ascii_digit()).take_while(|c| c.is_ascii_digit()).collect();
    digits.parse().ok()
}

fn chunk(data: &str) -> Vec<u8> {
    format!("{:x}\r\ndata: {}\n\n\r\n", data.len() + 8, data).into_bytes()
}

fn summary(name: &str, values: &mut Vec<u32>) -> String {
    if values.is_empty() {
        return format!("\"{name}\":null");
    }
    values.sort_unstable();
    let n = values.len() as f64;
    let mean = values.iter().map(|v| *v as f64).sum::<f64>() / n;
    let var = values.iter().map(|v| (*v as f64 - mean).powi(2)).sum::<f64>() / n;
    let p99 = values[((n - 1.0) * 0.99) as usize];
    let over = values.iter().filter(|v| **v > 1000).count();
    format!(
        "\"{name}\":{{\"n\":{},\"mean\":{mean:.1},\"std\":{:.1},\"p99\":{p99},\"over_1ms\":{over}}}",
        values.len(),
        var.sqrt()
    )
}

fn plain(s: &mut TcpStream, body: &str) -> std::io::Result<()> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
    s.write_all((head + body).as_bytes())
}

fn serve(mut s: TcpStream, timing: Timing, seen: Arc<Mutex<Seen>>) -> std::io::Result<()> {
    unsafe { prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0) };
    s.set_nodelay(true)?;
    let on = 1i32;
    unsafe { setsockopt(s.as_raw_fd(), SOL_SOCKET, SO_TIMESTAMPNS, &on, 4) };
    let mut have = Vec::new();
    while let Some((line, body, received)) = request(&s, &mut have) {
        if !line.starts_with("POST") {
            let answer = if line.contains("/stats") {
                let mut all = std::mem::take(&mut *seen.lock().unwrap());
                let parts =
                    [summary("first", &mut all.first), summary("all", &mut all.all), summary("gap", &mut all.gap)];
                format!("{{{}}}", parts.join(","))
            } else {
                r#"{"object":"list","data":[{"id":"mock","object":"model","root":"mock"}]}"#.to_string()
            };
            plain(&mut s, &answer)?;
            continue;
        }
        let text = String::from_utf8_lossy(&body).to_string();
        let n = number(&text, "\"max_completion_tokens\"").or(number(&text, "\"max_tokens\"")).unwrap_or(100);
        s.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        let chunks = n.div_ceil(timing.per_chunk);
        let mut late = Vec::with_capacity(chunks);
        let mut gaps = Vec::with_capacity(chunks);
        let mut before = 0;
        for i in 0..chunks {
            let tokens = timing.per_chunk.min(n - i * timing.per_chunk);
            let words: String = (0..tokens).map(|k| format!(" tok{}", i * timing.per_chunk + k)).collect();
            let key = if i < timing.reasoning { "reasoning" } else { "content" };
            let role = if i == 0 { "\"role\":\"assistant\"," } else { "" };
            let data = chunk(&format!(
                "{{\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"mock\",\"choices\":[{{\"index\":0,\"delta\":{{{role}\"{key}\":\"{words}\"}},\"logprobs\":null,\"finish_reason\":null,\"token_ids\":null}}]}}"
            ));
            let due = received + timing.ttft_ns + timing.itl_ns * i as i64;
            if due > now() {
                sleep_until(due);
            }
            let sent = now();
            late.push(((sent - due).max(0) / 1000) as u32);
            if i > 0 {
                gaps.push(((sent - before) / 1000) as u32);
            }
            before = sent;
            s.write_all(&data)?;
        }
        let mut end = chunk(&format!(
            "{{\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"mock\",\"choices\":[],\"usage\":{{\"prompt_tokens\":32,\"completion_tokens\":{n},\"total_tokens\":{}}}}}",
            n + 32
        ));
        end.extend(chunk("[DONE]"));
        end.extend(b"0\r\n\r\n");
        s.write_all(&end)?;
        let mut all = seen.lock().unwrap();
        all.first.push(late[0]);
        all.all.extend(late);
        all.gap.extend(gaps);
    }
    Ok(())
}

fn main() {
    let a: Vec<f64> = std::env::args().skip(1).map(|x| x.parse().expect("a number")).collect();
    let timing = Timing {
        ttft_ns: (a[1] * 1e6) as i64,
        itl_ns: (a[2] * 1e6) as i64,
        per_chunk: a[3] as usize,
        reasoning: a[4] as usize,
    };
    let listener = TcpListener::bind(("127.0.0.1", a[0] as u16)).expect("the port is free");
    unsafe { listen(listener.as_raw_fd(), 4096) }; // std's backlog of 128 would drop a burst of connects
    let seen = Arc::new(Mutex::new(Seen::default()));
    for s in listener.incoming().flatten() {
        let seen = seen.clone();
        let run = move || drop(serve(s, timing, seen));
        thread::Builder::new().stack_size(256 * 1024).spawn(run).expect("a thread");
    }
}
