//! Requests in one line, for tables of cases.

use super::Request;

impl Request {
    /// `METHOD TARGET NAME=VALUE…`: a name is a header's, or `host` for the authority; the word `h2` asks for HTTP/2. In values
    /// `_` stands for a space.
    pub(crate) fn parse(line: &str, host: &str) -> Self {
        let mut words = line.split_whitespace();
        let (method, target) = (words.next().unwrap(), words.next().unwrap());
        let mut request = Self::new(method, target).host(host);
        for word in words {
            request = match word.split_once('=') {
                None if word == "h2" => request.http2(),
                None => panic!("{word:?} in {line:?} is not NAME=VALUE"),
                Some(("host", host)) => request.host(host),
                Some((name, value)) => request.header(name, &value.replace('_', " ")),
            };
        }
        request
    }
}
