"""The manual as tables: no behaviour, only what the Intel SDM (revision 092) says.

Each module is one table, in the manual's order, and can be imported alone:

=====================  ==========================================================================
`fields`               VMCS fields: encoding, width, area, and the control that makes each exist
`controls`             bits of the pin-based, processor-based, exit, entry and VM-function controls
`exits`                basic exit reasons, and which information fields each of them fills
`instruction_errors`   VM-instruction error numbers
`msrs`                 VMX capability MSRs, and the other MSRs that the machine touches
`layout`               what a row of bits is, and how to decode a value with it
`qualifications`       bit layouts of the exit qualification and of the information fields
`sentences`            an exit qualification as a plain sentence
`ept`                  formats of the EPT paging-structure entries
`instructions`         the instructions a guest program may name, and what makes them exit
`lookup`               how names and numbers may be written
=====================  ==========================================================================
"""
