//! The ways in which an upstream means harm. Each list is made with its enum: what is added is in it.

use std::net::SocketAddr;

use crate::upstream::Operation;

/// Declares an enum and the list of all its values; a variant `of` another enum stands for each of that one's.
macro_rules! each {
    ($(#[$of:meta])* $name:ident { $($(#[$doc:meta])+ $variant:ident $(of $inner:ident)?,)+ }) => {
        $(#[$of])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name {
            $($(#[$doc])+ $variant $(($inner))?,)+
        }

        impl $name {
            /// All of them.
            pub fn all() -> Vec<Self> {
                [$(each!(Self::$variant $(, $inner)?)),+].concat()
            }
        }
    };
    ($variant:expr) => {
        vec![$variant]
    };
    ($variant:expr, $inner:ident) => {
        $inner::all().into_iter().map($variant).collect::<Vec<_>>()
    };
}

each! {
    /// Where nobody should be sent. Those that lead to this machine lead to a trap's port.
    Place {
        /// This machine, by its address.
        Loopback,
        /// This machine, by its name.
        Localhost,
        /// The same with a dot at the end.
        Dotted,
        /// Its address in short.
        Short,
        /// Its address as one number.
        Decimal,
        /// Its address with a hexadecimal part.
        Hexadecimal,
        /// Its address with an octal part.
        Octal,
        /// Its address within IPv6.
        Mapped,
        /// Its address in the old compatible form of IPv6.
        Compatible,
        /// This machine in IPv6.
        Loopback6,
        /// No address, which connects to this machine.
        Unspecified,
        /// The same in IPv6.
        Unspecified6,
        /// The metadata servers of clouds.
        LinkLocal,
        /// A private network.
        Private,
        /// A private network in IPv6.
        Private6,
        /// All hosts of the link.
        Multicast,
        /// A file.
        File,
        /// Another protocol.
        Ftp,
        /// Another one, which speaks to anything.
        Gopher,
        /// A URL with a user and a password.
        Credentials,
        /// A URL that is none.
        Nonsense,
    }
}

impl Place {
    /// Its URL; `trap` listens on this machine.
    pub fn url(self, trap: SocketAddr) -> String {
        let port = trap.port();
        let at = |host: &str| format!("http://{host}:{port}/latest/meta-data/token");
        match self {
            Self::Loopback => at("127.0.0.1"),
            Self::Localhost => at("localhost"),
            Self::Dotted => at("localhost."),
            Self::Short => at("127.1"),
            Self::Decimal => at("2130706433"),
            Self::Hexadecimal => at("0x7f.1"),
            Self::Octal => at("0177.0.0.1"),
            Self::Mapped => at("[::ffff:127.0.0.1]"),
            Self::Compatible => at("[::127.0.0.1]"),
            Self::Loopback6 => at("[::1]"),
            Self::Unspecified => at("0.0.0.0"),
            Self::Unspecified6 => at("[::]"),
            Self::LinkLocal => "http://169.254.169.254/latest/meta-data/token".into(),
            Self::Private => "http://10.0.0.1/token".into(),
            Self::Private6 => "http://[fd00::1]/token".into(),
            Self::Multicast => "http://224.0.0.1/token".into(),
            Self::File => "file:///etc/passwd".into(),
            Self::Ftp => format!("ftp://127.0.0.1:{port}/token"),
            Self::Gopher => format!("gopher://127.0.0.1:{port}/_GET%20/token"),
            Self::Credentials => format!("http://ada:pw@127.0.0.1:{port}/token"),
            Self::Nonsense => "http://".into(),
        }
    }
}

each! {
    /// What is done to whoever asks.
    Harm {
        /// The request is led to such a place.
        Redirect of Place,
        /// Batch answers say that every object is at such a place, with headers that metadata servers want.
        Href of Place,
        /// The request is led to itself, again and again.
        Circle,
        /// A web page in a 200.
        Page,
        /// A text in a 200.
        Text,
        /// Bytes in a 200.
        Bytes,
        /// The right answer, which is said to be a web page.
        Mislabelled,
        /// A web page in a 403.
        Refusal,
        /// A web page in a 500.
        Failure,
        /// A body of the right type that never ends.
        EndlessBody,
        /// A web page that never ends.
        EndlessPage,
        /// Headers without end.
        EndlessHeaders,
        /// A header without end.
        EndlessHeader,
        /// Half of the right answer, of the length that all of it has; then the connection is closed.
        CutLength,
        /// Half of the right answer, in chunks; then the connection is closed.
        CutChunks,
        /// Half of the right answer, as if it were all.
        EndsEarly,
        /// The connection is closed without a word.
        Nothing,
        /// Bytes that are no HTTP.
        Garbage,
        /// The right answer's type, compressed, and very long.
        Swelling,
        /// Bundles and packs are said to be elsewhere.
        Uris,
        /// Very many refs.
        ManyRefs,
        /// Texts that paint on terminals and forge lines of a log.
        Paint,
        /// Nothing is answered, and the connection stays.
        Silence,
        /// Nothing comes after the head.
        HeadAlone,
        /// A byte a second, without end.
        Drip,
        /// Answers that an answer will come, without end.
        Hints,
    }
}

impl Harm {
    /// Whether the request is held open: whoever asks learns by its own patience alone that there is no answer.
    pub fn holds(self) -> bool {
        matches!(self, Self::Silence | Self::HeadAlone | Self::Drip | Self::Hints)
    }

    /// Whether an answer may be changed by this and still be a git server's: its refs, its packs, its messages.
    pub fn is_gits(self) -> bool {
        matches!(self, Self::ManyRefs | Self::Uris | Self::Paint)
    }

    /// Where it leads to.
    pub fn place(self) -> Option<Place> {
        match self {
            Self::Redirect(place) | Self::Href(place) => Some(place),
            _ => None,
        }
    }

    /// Whether requests of this kind are harmed.
    pub fn concerns(self, operation: Operation) -> bool {
        match self {
            Self::Href(_) => operation == Operation::LfsBatch,
            Self::ManyRefs => operation == Operation::LsRefs,
            Self::Uris => {
                matches!(operation, Operation::Advertise | Operation::LsRefs | Operation::Fetch)
            }
            _ => true,
        }
    }
}
