# A client of CreditPiggy's daemon, and a job runner that has each job credited. It needs nothing but Perl.
package Credit;
use strict;
use warnings;
use Exporter 'import';
use IO::Socket::UNIX;
use List::Util 'pairmap';

our @EXPORT_OK = qw(send_command run_job);

# Sends one command to the daemon at the path of a UNIX socket; dies unless it was taken. "not taken" is certain, and
# may be sent again; "in doubt" may have been taken all the same, and must not.
sub send_command {
    my ($endpoint, $kind, @fields) = @_;
    die "not taken: there is no escaping of , = and control characters: @fields\n"
        if grep { /[,=[:cntrl:]]/ } @fields;
    my $frame = join ',', $kind, pairmap { "$a=$b" } @fields;
    die "not taken: more than 1,500 bytes\n" if length $frame > 1500;
    my $daemon = IO::Socket::UNIX->new(Peer => $endpoint) or die "not taken: $endpoint: $!\n";
    local $SIG{PIPE} = 'IGNORE';
    local $SIG{ALRM} = sub { die "in doubt: no answer in 10 seconds: $frame\n" };
    alarm 10;
    $daemon->syswrite($frame);    # in one piece
    my $answer = '';
    1 while $daemon->sysread($answer, 100, length $answer);    # the daemon closes after its answer
    alarm 0;
    die "not taken: $frame\n" if $answer eq 'ER';
    die "in doubt: $frame\n" if $answer ne 'OK';
}

# Does a job's work, which returns a number of events, and has the machine credited if it does not die.
sub run_job {
    my ($endpoint, $job, $machine, $work) = @_;
    send_command($endpoint, 'alloc', slot => $job, min => 1, max => 10);
    my $events = eval { $work->() };
    if (!defined $events) {
        send_command($endpoint, 'discard', slot => $job, reason => 'failed');
        return;
    }
    send_command($endpoint, 'counters', slot => $job, 'job/success' => 1, 'job/events' => $events);
    send_command($endpoint, 'claim', slot => $job, machine => $machine, credits => int(($events + 99) / 100));
}

1;
