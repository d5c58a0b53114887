//! Request heads and answers, byte for byte.

/// A valid `Sec-WebSocket-Key`: the example of RFC 6455, section 1.3.
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// The `Sec-WebSocket-Accept` that belongs to [`KEY`].
pub const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// A request head whose every part can be made wrong.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    pub target: String,
    pub version: String,
    pub headers: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Request {
    /// A plain GET with a Host.
    pub fn get(target: &str) -> Self {
        Self {
            method: "GET".to_owned(),
            target: target.to_owned(),
            version: "HTTP/1.1".to_owned(),
            headers: Vec::new(),
        }
        .header("Host", "relay.test")
    }

    /// A valid upgrade request to `target`, but for the headers that the endpoint requires.
    pub fn upgrade(target: &str) -> Self {
        Self::get(target)
            .header("Connection", "Upgrade")
            .header("Upgrade", "websocket")
            .header("Sec-WebSocket-Version", "13")
            .header("Sec-WebSocket-Key", KEY)
    }

    /// A binary's valid upgrade request.
    pub fn server(id: impl AsRef<[u8]>) -> Self {
        Self::upgrade("/v1/server")
            .header("X-Pyrycode-Server", id)
            .header("X-Pyrycode-Version", "1.2.3")
            .header("User-Agent", "raw-binary/1")
    }

    /// A phone's valid upgrade request.
    pub fn client(id: impl AsRef<[u8]>) -> Self {
        Self::upgrade("/v1/client")
            .header("X-Pyrycode-Server", id)
            .header("X-Pyrycode-Token", "any-token")
            .header("User-Agent", "raw-phone/1")
    }

    pub fn method(mut self, method: &str) -> Self {
        self.method = method.to_owned();
        self
    }

    pub fn version(mut self, version: &str) -> Self {
        self.version = version.to_owned();
        self
    }

    /// Adds a header behind those that are there.
    pub fn header(mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.headers.push((name.as_ref().to_vec(), value.as_ref().to_vec()));
        self
    }

    /// Drops every header of this name.
    pub fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(other, _)| !other.eq_ignore_ascii_case(name.as_bytes()));
        self
    }

    /// Puts one header of this name in the place of all of them.
    pub fn set(self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.without(name).header(name, value)
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut head = format!("{} {} {}\r\n", self.method, self.target, self.version).into_bytes();
        for (name, value) in &self.headers {
            head.extend_from_slice(name);
            head.extend_from_slice(b": ");
            head.extend_from_slice(value);
            head.extend_from_slice(b"\r\n");
        }
        head.extend_from_slice(b"\r\n");
        head
    }
}

impl From<Request> for Vec<u8> {
    fn from(request: Request) -> Self {
        request.bytes()
    }
}

/// An answer of the relay.
#[derive(Debug, Clone)]
pub struct Response {
    pub status: u16,
    /// The head as it came, up to and with the empty line.
    pub head: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    /// Reads a head; the body is yet to come.
    pub fn parse(head: &str) -> Self {
        let mut lines = head.split("\r\n").take_while(|line| !line.is_empty());
        let status_line = lines.next().unwrap_or_default();
        let (version, rest) = status_line.split_once(' ').expect("a status line");
        assert_eq!(version, "HTTP/1.1", "{status_line}");
        let status = rest.split(' ').next().unwrap().parse().expect("a status code");
        let headers = lines
            .map(|line| line.split_once(':').unwrap_or_else(|| panic!("no header: {line:?}")))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        Self { status, head: head.to_owned(), headers, body: Vec::new() }
    }

    /// The value of the header `name`, which comes at most once.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut all = self.headers.iter().filter(|(other, _)| other.eq_ignore_ascii_case(name));
        let first = all.next().map(|(_, value)| value.as_str());
        assert!(all.next().is_none(), "{name} comes twice: {}", self.head);
        first
    }

    /// How many bytes of body follow the head, if the request was not HEAD.
    pub fn content_length(&self) -> usize {
        if matches!(self.status, 100..200 | 204 | 304) {
            return 0;
        }
        self.header("Content-Length").map_or(0, |length| length.parse().expect("a length"))
    }
}
