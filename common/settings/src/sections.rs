//! The macro that generates structs and their description from the declaration of the sections.

/// Declares all sections of the settings.
///
/// It defines a struct with the declared fields and defaults for each section, and `Settings`, which contains all
/// sections and describes every field in [`Section`](crate::field::Section)s.
macro_rules! sections {
    ($(
        $(#[doc = $section_doc:literal])+
        $section:ident: $Section:ident, determines_pack: $determines_pack:literal {
            $(
                $(#[doc = $doc:literal])+
                $field:ident: $Type:ty {
                    default: $default:expr,
                    allowed: $allowed:expr,
                    example: $example:literal,
                }
            )+
        }
    )+) => {
        $(
            $(#[doc = $section_doc])+
            #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
            #[serde(deny_unknown_fields, default)]
            pub struct $Section {
                $(
                    $(#[doc = $doc])+
                    pub $field: $Type,
                )+
            }

            impl Default for $Section {
                fn default() -> Self {
                    Self { $($field: $default),+ }
                }
            }
        )+

        /// All settings of a run.
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct Settings {
            $(
                $(#[doc = $section_doc])+
                pub $section: $Section,
            )+
        }

        impl Settings {
            /// The names of the sections.
            pub const SECTIONS: &'static [&'static str] = &[$(stringify!($section)),+];

            /// The sections with the description of every field, in the order of their declaration.
            pub const DESCRIPTION: &'static [Section] = &[$(
                Section {
                    name: stringify!($section),
                    doc: concat!($($section_doc),+),
                    fields: &[$(
                        Field {
                            name: stringify!($field),
                            doc: concat!($($doc),+),
                            allowed: $allowed,
                            example: $example,
                        }
                    ),+],
                }
            ),+];

            /// The settings that determine the pack and its evaluation; the other sections are reset to their defaults.
            pub fn determining(&self) -> Self {
                let mut settings = self.clone();
                $(
                    if !$determines_pack {
                        settings.$section = $Section::default();
                    }
                )+
                settings
            }
        }
    };
}

pub(crate) use sections;
